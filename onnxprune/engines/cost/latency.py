"""Measure the latency of pruned candidates, for targets on an engine's latency.

MACs are a proxy that fails for unaligned widths, layers bound by memory and layout changes, and
tables of single layers omit what happens between them. Therefore a candidate is cut, compiled and
timed, interleaved with the original; a bisection needs about a dozen candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
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
from onnxprune.engines.measure import CPU, Sampler, Schedule, interleave
from onnxprune.ir.io import Model
from onnxprune.surgery.cut import cut

if TYPE_CHECKING:
    from typing_extensions import Self  # noqa: UP035 - in typing from 3.11 on

PROBE = Schedule(seconds=0.6, warmup=3, min_rounds=12, max_rounds=60)
# quantile of the times that ratios are taken of: other work makes inferences longer, never shorter
UNDISTURBED = 0.1
RESAMPLES = 200  # of the rounds, for the noise of a ratio
_ORIGINAL, _CANDIDATE = "original", "candidate"
Kept = Mapping[str, Sequence[int]]


class Probe:
    """Measure the latency of pruned models relative to the original; a context manager.

    Times are CPU times of the computing thread where the engine has one, else wall-clock times.
    `noise` is the largest deviation from 1 that a ratio shows by chance.

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
    convert
        Gives a candidate the type in which it is written, such as int8, before it is timed; the
        original is timed as it is.
    precision
        Precision of converted candidates; None = that of the options.

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
        convert: Callable[[Model], Model] | None = None,
        precision: str | None = None,
    ) -> None:
        require(engine)
        self._engine, self._analysis = engine, analysis
        self._options, self._schedule = options, schedule
        self._convert = convert
        self._converted = replace(options, precision=precision or options.precision)
        # those of the original serve all candidates: pruning keeps the inputs of a graph
        if feeds is None:
            feeds = random_feeds(static_inputs(analysis.original.model, options.shapes))
        self._feeds = dict(feeds)
        self._stack = ExitStack()
        # compiled once and kept: each candidate is timed against it
        self._original = self._stack.enter_context(engine.compile(analysis.original.model, options))
        self._known: dict[tuple[tuple[str, int], ...], float] = {}
        # measured once: candidates are only compared by their ratio
        first, second = self._time_twice(schedule)
        self.original_ms = float(np.median(first))
        self.noise = _compute_noise(first, second)

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
        if not widths and self._convert is None:
            return self.original_ms
        key = tuple(widths)
        # a bisection visits widths again when rounding maps two targets to the same ones
        if key not in self._known:
            self._known[key] = self.original_ms * self.measure(kept, self._schedule)
        return self._known[key]

    def measure(self, kept: Kept, schedule: Schedule) -> float:
        """Cut, compile and time a candidate; return its share of the original's time."""
        pruned = cut(self._analysis, self._analysis.plan(kept))
        options = self._options
        if self._convert is not None:
            pruned, options = self._convert(pruned), self._converted
        with self._engine.compile(pruned, options) as candidate:
            samplers = {
                _ORIGINAL: self._make_sampler(self._original),
                _CANDIDATE: self._make_sampler(candidate),
            }
            times = interleave(samplers, schedule)
        original_ms, candidate_ms = (
            np.quantile(times[name][..., CPU], UNDISTURBED) for name in (_ORIGINAL, _CANDIDATE)
        )
        return float(candidate_ms / original_ms)

    def measure_noise(self, schedule: Schedule) -> float:
        """Return the largest deviation from 1 of the original's ratio to itself by chance."""
        return _compute_noise(*self._time_twice(schedule))

    def forget(self) -> None:
        """Measure all candidates again when they are asked for."""
        self._known.clear()

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

    def _time_twice(self, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
        """Return the original's times, measured as if it were two models."""
        sampler = self._make_sampler(self._original)
        times = interleave({_ORIGINAL: sampler, _CANDIDATE: sampler}, schedule)
        return times[_ORIGINAL][..., CPU], times[_CANDIDATE][..., CPU]

    def _make_sampler(self, compiled: Compiled) -> Sampler:
        """Return the sampler of a compiled model."""
        return partial(compiled.sample_clocks, self._feeds)


def _compute_noise(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest deviation from 1 that chance causes in the ratio of two equal models.

    Parameters
    ----------
    first, second
        Times of shape (rounds, block) of one model, measured as if it were two; blocks may differ.
    """
    draws = np.random.default_rng(0).integers(0, len(first), (RESAMPLES, len(first)))
    # one after the other: the warm-up may give the two blocks of different sizes
    quantiles = [
        np.quantile(times[draws].reshape(RESAMPLES, -1), UNDISTURBED, axis=1)
        for times in (first, second)
    ]
    low, high = np.percentile(quantiles[0] / quantiles[1], [2.5, 97.5])
    return float(max(high - 1, 1 - low))
