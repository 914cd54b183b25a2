"""The latency of what a plan would leave, measured: what a target on an engine's latency is met by.

MACs are a proxy that fails where it matters (unaligned widths, layers bound by memory, changes of layout), and tables of single layers leave out
what happens between them. So a candidate is cut, compiled and timed, interleaved with the original: a search by bisection needs about a dozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.engines.base import (
    DEFAULTS,
    Engine,
    EngineOptions,
    random_feeds,
    require,
    static_inputs,
)
from onnxprune.engines.measure import Schedule, interleave
from onnxprune.surgery.cut import cut

if TYPE_CHECKING:
    from typing_extensions import Self  # noqa: UP035 - of typing from 3.11 on

PROBE = Schedule(seconds=0.6, warmup=3, min_rounds=12, max_rounds=60)
UNDISTURBED = 0.1  # quantile of the times that a ratio is taken of: other work on the machine makes inferences longer, never shorter
_BASE, _CANDIDATE = "original", "candidate"
Kept = Mapping[str, Sequence[int]]


class Probe:
    """Times cut models against the original on one engine. Use as a context manager.

    Parameters
    ----------
    engine
        An available engine; one whose latency is computed works as well.
    analysis
        What the plans speak of.
    options
        Threads, precision, shapes of inputs.
    feeds
        Inputs by name; random ones where None.
    schedule
        Of one candidate; the default measures about a second in all.

    Raises
    ------
    EngineError
        The engine is not available, or refuses the original.
    """

    def __init__(
        self,
        engine: Engine,
        analysis: Analysis,
        options: EngineOptions = DEFAULTS,
        *,
        feeds: Mapping[str, np.ndarray] | None = None,
        schedule: Schedule = PROBE,
    ) -> None:
        require(engine)
        self._engine, self._analysis, self._options, self._schedule = (
            engine,
            analysis,
            options,
            schedule,
        )
        self._feeds = (
            dict(feeds)
            if feeds is not None
            else random_feeds(static_inputs(analysis.model, options.shapes))
        )
        self._stack = ExitStack()
        self._base = self._stack.enter_context(engine.compile(analysis.model, options))
        self._known: dict[tuple[tuple[str, int], ...], float] = {}
        times = interleave({_BASE: self._sample(self._base)}, schedule)[_BASE]
        self.original_ms = float(np.median(times))

    def __call__(self, kept: Kept) -> float:
        """Milliseconds of the model that keeps these channels: `original_ms` times the ratio to the original that ran beside it.

        The ratio is that of undisturbed inferences: one candidate that seems slow because the machine was busy would send a bisection the wrong way.
        The same widths are measured once.
        """
        sizes = {g.name: g.size for g in self._analysis.groups}
        widths = tuple(
            sorted(
                (name, len(channels))
                for name, channels in kept.items()
                if len(channels) < sizes[name]
            )
        )
        if not widths:
            return self.original_ms
        if widths not in self._known:
            self._known[widths] = self._measure(kept)
        return self._known[widths]

    @property
    def measured(self) -> int:
        """Number of candidates that were timed."""
        return len(self._known)

    def close(self) -> None:
        """Release the original."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _measure(self, kept: Kept) -> float:
        with self._engine.compile(
            cut(self._analysis, self._analysis.plan(kept)), self._options
        ) as candidate:
            times = interleave(
                {_BASE: self._sample(self._base), _CANDIDATE: self._sample(candidate)},
                self._schedule,
            )
        base_ms, left_ms = (
            float(np.quantile(times[name], UNDISTURBED)) for name in (_BASE, _CANDIDATE)
        )
        return self.original_ms * left_ms / base_ms

    def _sample(self, compiled: Any) -> Any:
        return lambda count: compiled.sample(self._feeds, count)
