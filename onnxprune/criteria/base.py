"""What a criterion is given, and sums that all of them need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.analysis.groups import Analysis, Member
from onnxprune.data.dataset import Data, flips, split
from onnxprune.errors import DataError, OnnxpruneError
from onnxprune.types import Scores

MOST_GATE_SAMPLES, LEAST_GATE_SAMPLES = 128, 8

Criterion = Callable[["Context"], Scores]


@dataclass(frozen=True)
class Context:
    """What a criterion or a repair works with.

    data: calibration inputs; None where there are none. batch_size: samples a run. threads: of onnxruntime.
    flip: statistics and repairs also see every image mirrored.
    progress: told how much of the stage is done, from 0 to 1, and of what; optional, passes over `data` are seen anyway.
    """

    analysis: Analysis
    data: Data | None = None
    seed: int = 0
    threads: int = 1
    batch_size: int = 16
    flip: bool = False
    cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    progress: Callable[[float, str], None] = lambda share, detail: None

    def statistics_data(self, who: str) -> Data:
        """The part of the data that statistics are taken from; apart from `gate_data`."""
        return self._mirrored(self._parts(who)[0])

    def gate_data(self, who: str) -> Data:
        """The part of the data that measures what a cut does: a quarter, at most 128 samples; all where there are fewer than 32."""
        return self._parts(who)[1]

    def _parts(self, who: str) -> tuple[Data, Data]:
        data = self.required_data(who)
        gate = min(data.samples // 4, MOST_GATE_SAMPLES)
        return (data, data) if gate < LEAST_GATE_SAMPLES else split(data, data.samples - gate, gate)

    def repair_data(self, who: str) -> Data:
        """All of the data, for weights that are fitted once widths are chosen."""
        return self._mirrored(self.required_data(who))

    def _mirrored(self, data: Data) -> Data:
        return flips(data) if self.flip else data

    def required_data(self, who: str) -> Data:
        """The data; DataError where there are none."""
        if self.data is None:
            raise DataError(
                "data-missing",
                f"{who} needs calibration data; pass --data, or choose a criterion on weights such as l2",
            )
        return self.data


def per_channel(
    analysis: Analysis, group: str, per_position: Callable[[Member], np.ndarray | None]
) -> np.ndarray | None:
    """Sum over a group's sites of a value a position, given to the channels that the position carries.

    per_position gives float64 values for all positions of the member's axis, or None to leave the site out.
    Returns (size,) float64, or None where every site was left out.
    """
    total, found = np.zeros(analysis.group(group).size), False
    for member in analysis.members(group):
        values = per_position(member)
        if values is not None:
            found = True
            np.add.at(total, member.channels, values[member.positions])
    return total if found else None


def check_criterion(criterion: Criterion, context: Context) -> None:
    """Contract of a criterion: known groups only, one finite float64 a channel, the same for the same context.

    Raises
    ------
    OnnxpruneError
        What the criterion gave and what it should have.
    """
    first, second = criterion(context), criterion(context)
    for name, scores in first.items():
        size = context.analysis.group(name).size
        if scores.shape != (size,) or scores.dtype != np.float64 or not np.isfinite(scores).all():
            raise OnnxpruneError(
                "criterion-contract",
                f"scores of group {name!r} must be {size} finite float64 values, not {scores.dtype} {scores.shape}",
            )
        if not np.array_equal(scores, second[name]):
            raise OnnxpruneError(
                "criterion-contract",
                f"scores of group {name!r} differ between two calls with the same context",
            )
