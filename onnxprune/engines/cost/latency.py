"""Measure the latency of pruned candidates, for targets on an engine's latency.

MACs are a proxy that fails for unaligned widths, layers bound by memory and layout changes, and
tables of single layers omit what happens between them. Therefore a candidate is cut, compiled and
timed, interleaved with the original; a bisection needs about a dozen candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.engines.base import (
    DEFAULTS,
    Compiled,
    Engine,
    EngineOptions,
    random_feeds,
    require,
    static_inputs,
)
from onnxprune.engines.measure import Sampler, Schedule, interleave
from onnxprune.surgery.cut import cut

if TYPE_CHECKING:
    from typing_extensions import Self  # noqa: UP035 - in typing from 3.11 on

PROBE = Schedule(seconds=0.6, warmup=3, min_rounds=12, max_rounds=60)
# quantile of the times that ratios are taken of: other work makes inferences longer, never shorter
UNDISTURBED = 0.1
_ORIGINAL, _CANDIDATE = "original", "candidate"
Kept = Mapping[str, Sequence[int]]


class Probe:
    """Measure the latency of pruned models relative to the original; a context manager.

    Parameters
    ----------
    engine
        An available engine, measured or computed.
    analysis
        Analysis that the candidates' groups belong to.
    options
        Options of the engine.
    feeds
        Inputs by name; None = random ones.
    schedule
        Schedule of one candidate; the default takes about a second.

    Raises
    ------
    EngineError
        The engine is not available or rejects the original.
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
        self._engine, self._analysis = engine, analysis
        self._options, self._schedule = options, schedule
        # those of the original serve all candidates: pruning keeps the inputs of a graph
        if feeds is None:
            feeds = random_feeds(static_inputs(analysis.model, options.shapes))
        self._feeds = dict(feeds)
        self._stack = ExitStack()
        # compiled once and kept: each candidate is timed against it
        self._original = self._stack.enter_context(engine.compile(analysis.model, options))
        self._known: dict[tuple[tuple[str, int], ...], float] = {}
        # measured once: candidates are only compared by their ratio
        times = interleave({_ORIGINAL: self._make_sampler(self._original)}, schedule)[_ORIGINAL]
        self.original_ms = float(np.median(times))

    def __call__(self, kept: Kept) -> float:
        """Return the milliseconds of the model that keeps these channels.

        It is `original_ms` times the ratio to the original, measured interleaved. The ratio is that
        of undisturbed inferences: one candidate that seems slow because the machine was busy would
        send a bisection the wrong way. Each combination of widths is measured once.
        """
        sizes = {g.name: g.size for g in self._analysis.groups}
        # which channels are kept does not change the time, only how many
        widths = sorted(
            (name, len(channels)) for name, channels in kept.items() if len(channels) < sizes[name]
        )
        if not widths:
            return self.original_ms
        key = tuple(widths)
        # a bisection visits widths again when rounding maps two targets to the same ones
        if key not in self._known:
            self._known[key] = self._measure(kept)
        return self._known[key]

    @property
    def measured(self) -> int:
        """Number of candidates that were timed."""
        return len(self._known)

    def close(self) -> None:
        """Release the original."""
        self._stack.close()

    def __enter__(self) -> Self:
        """Return the probe."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the original."""
        self.close()

    def _measure(self, kept: Kept) -> float:
        """Cut, compile and time a candidate."""
        pruned = cut(self._analysis, self._analysis.plan(kept))
        with self._engine.compile(pruned, self._options) as candidate:
            samplers = {
                _ORIGINAL: self._make_sampler(self._original),
                _CANDIDATE: self._make_sampler(candidate),
            }
            times = interleave(samplers, self._schedule)
        original_ms = float(np.quantile(times[_ORIGINAL], UNDISTURBED))
        candidate_ms = float(np.quantile(times[_CANDIDATE], UNDISTURBED))
        return self.original_ms * candidate_ms / original_ms

    def _make_sampler(self, compiled: Compiled) -> Sampler:
        """Return the sampler of a compiled model."""
        return partial(compiled.sample, self._feeds)
