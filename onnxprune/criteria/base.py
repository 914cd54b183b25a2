"""Contract of a criterion: its input, its result, and sums that several criteria need."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from onnxprune.analysis.groups import Analysis, Member
from onnxprune.criteria.memo import Kind, Memo, Scope
from onnxprune.data.dataset import Data, flips, split
from onnxprune.errors import DataError
from onnxprune.moved import old_names
from onnxprune.types import Scores

# Samples that measure the effect of a cut: enough to rank widths, few enough to run often.
MAX_GATE_SAMPLES, MIN_GATE_SAMPLES = 128, 8

Criterion = Callable[["Context"], Scores]
T = TypeVar("T")

if not TYPE_CHECKING:
    __getattr__ = old_names(
        __name__, {"check_criterion": "onnxprune.testing.criteria:check_criterion"}
    )


@dataclass(frozen=True)
class Context:
    """Input of criteria, allocators and repairs.

    Attributes
    ----------
    analysis
        Analyzed model.
    data
        Calibration inputs; None if there are none.
    seed
        Seed of all random choices.
    threads
        Threads of onnxruntime.
    batch_size
        Samples per run.
    flip
        Statistics and repairs also see every image mirrored.
    memo
        Results that several stages share; see `memoize`.
    progress
        Callback (share done from 0 to 1, detail). Optional: passes over `data` report their
        progress themselves.
    """

    analysis: Analysis
    data: Data | None = None
    seed: int = 0
    threads: int = 1
    batch_size: int = 16
    flip: bool = False
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)
    progress: Callable[[float, str], None] = lambda share, detail: None

    def memoize(self, kind: Kind[T], compute: Callable[[], T], *arguments: Hashable) -> T:
        """Return a result of this kind for the context; compute it on the first call.

        Parameters
        ----------
        arguments
            What the result depends on besides the context.
        """
        return self.memo.get(kind, self._scope, compute, *arguments)

    @property
    def _scope(self) -> Scope:
        return Scope(
            self.analysis.digest,
            # options have no order
            repr(sorted(self.analysis.options.items())),
            "" if self.data is None else self.data.fingerprint(),
            self.seed,
            self.batch_size,
            self.threads,
            self.flip,
        )

    def statistics_data(self, who: str) -> Data:
        """Return the part of the data for statistics; it does not overlap `gate_data`.

        Parameters
        ----------
        who
            Stage that needs it, for the error message.
        """
        return self._mirror(self._split(who)[0])

    def gate_data(self, who: str) -> Data:
        """Return the part of the data that measures the effect of a cut.

        A quarter of the samples, at most `MAX_GATE_SAMPLES`; all samples if a quarter is less than
        `MIN_GATE_SAMPLES`.
        """
        return self._split(who)[1]

    def _split(self, who: str) -> tuple[Data, Data]:
        """Return the data for statistics and for the gate."""
        data = self.required_data(who)
        gate = min(data.samples // 4, MAX_GATE_SAMPLES)
        return (data, data) if gate < MIN_GATE_SAMPLES else split(data, data.samples - gate, gate)

    def repair_data(self, who: str) -> Data:
        """Return all data, for weights that are fitted after the widths are chosen."""
        return self._mirror(self.required_data(who))

    def _mirror(self, data: Data) -> Data:
        """Return the data with mirrored copies if `flip` is set."""
        return flips(data) if self.flip else data

    def required_data(self, who: str) -> Data:
        """Return the data.

        Raises
        ------
        DataError
            There are none.
        """
        if self.data is None:
            raise DataError(
                "data-missing",
                f"{who} needs calibration data; pass --data, or choose a criterion on weights "
                "such as l2",
            )
        return self.data


def per_channel(
    analysis: Analysis, group: str, per_position: Callable[[Member], np.ndarray | None]
) -> np.ndarray | None:
    """Sum a value per position over all sites of a group, by channel.

    Parameters
    ----------
    per_position
        Returns float64 values for all positions of the member's axis, or None to skip the site.

    Returns
    -------
    np.ndarray or None
        (channels,) float64; None if every site was skipped.
    """
    total, any_site = np.zeros(analysis.group(group).size), False
    for member in analysis.members(group):
        values = per_position(member)
        if values is not None:
            any_site = True
            # a channel may occupy several positions, so that plain indexing would drop values
            np.add.at(total, member.channels, values[member.positions])
    return total if any_site else None
