"""Interleaved timing of several models, with a confidence interval of their ratio.

Consecutive runs measure the drift of the machine as much as the models. Here every round times a
block of each contender, in an order that is reversed from round to round, so that drift affects all
of them equally; the ratio is taken within rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from onnxprune.engines.measurement import Measurement
from onnxprune.errors import UsageError
from onnxprune.parallel import count_cpus

K = TypeVar("K")
Sampler = Callable[[int], Sequence[Any]]
"""Function that times that many inferences and returns their milliseconds, by one or two clocks."""
WALL, CPU = 0, 1  # last axis of times by two clocks

NOISE_LIMIT = 0.10  # rounds that differ by more than this cannot show a gain of 10 %
WAIT_LIMIT = 1.2  # wall clock over CPU clock from which on waiting for a CPU is reported
BUSY_LOAD = 0.5  # runnable processes of other programs, averaged over the last minute
BLOCK_MS = 10.0  # makes the refill of the caches after another contender a small part of a block
MAX_BLOCK = 64
WARMUP_MS = 100.0  # limits the warm-up of large models after their first inference
MIN_ROUNDS, MAX_ROUNDS = 7, 200
LOOK_ROUNDS = 5  # between two looks at the precision
MOST_QUANTILES = 200  # of the inferences, enough for a picture of their distribution
# percentiles 2.5 and 97.5 then rest on 25 draws each
BOOTSTRAP = 1000


@dataclass(frozen=True)
class Schedule:
    """Duration of a measurement.

    Attributes
    ----------
    seconds
        Time per contender without warm-up.
    warmup
        Inferences of each contender before the first round.
    min_rounds, max_rounds
        Limits of the number of rounds.
    precise
        Relative half-width of the 95 % interval of the ratios to the first contender at which the
        measurement ends before its time; 0 = never.
    """

    seconds: float = 2.0
    warmup: int = 5
    min_rounds: int = MIN_ROUNDS
    max_rounds: int = MAX_ROUNDS
    precise: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        # the block size is derived from the warm-up's times
        if self.warmup < 1:
            raise UsageError("schedule", f"warmup is {self.warmup}; use at least 1")
        if not 1 <= self.min_rounds <= self.max_rounds:
            raise UsageError(
                "schedule",
                f"min_rounds is {self.min_rounds} and max_rounds {self.max_rounds}; "
                "use 1 <= min_rounds <= max_rounds",
            )
        if not self.seconds >= 0:
            raise UsageError("schedule", f"seconds is {self.seconds}; use at least 0")


SCHEDULE = Schedule()


@dataclass(frozen=True)
class Ratio:
    """Speed-up of `contender` over `base`; above 1 = faster.

    Attributes
    ----------
    median
        Median over the rounds.
    low, high
        95 % bootstrap interval of the median over the rounds.
    """

    base: str
    contender: str
    median: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """True if the interval excludes 1."""
        return self.low > 1 or self.high < 1

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a report."""
        return {**asdict(self), "clear": self.clear}


def interleave(samplers: Mapping[K, Sampler], schedule: Schedule = SCHEDULE) -> dict[K, np.ndarray]:
    """Return the times in milliseconds per contender.

    Each has shape (rounds, block), or (rounds, block, 2) if its sampler reads two clocks.
    All contenders have the same number of rounds; a contender's block takes about BLOCK_MS. The
    first inference of a block runs with caches that the other contenders filled and is dropped if
    the block has more than one.
    """
    blocks = {}
    for name, sampler in samplers.items():
        # the first inference allocates memory and chooses kernels; later ones fill caches, which
        # takes large models few
        warm_ms = float(np.min(sampler(1)))
        rest = min(schedule.warmup - 1, int(np.ceil(WARMUP_MS / max(warm_ms, 1e-6))))
        if rest:
            warm_ms = min(warm_ms, float(np.min(sampler(rest))))
        blocks[name] = int(np.clip(np.ceil(BLOCK_MS / max(warm_ms, 1e-6)), 1, MAX_BLOCK))
    times: dict[K, list[Sequence[Any]]] = {name: [] for name in samplers}
    order = list(samplers)
    # for all together: a round is complete or does not start
    end = time.perf_counter() + schedule.seconds * len(samplers)
    while (done := len(times[order[0]])) < schedule.max_rounds and (
        done < schedule.min_rounds or time.perf_counter() < end
    ):
        for name in order:
            # a block of one inference cannot spare its first
            extra = 1 if blocks[name] > 1 else 0
            times[name].append(samplers[name](blocks[name] + extra)[extra:])
        # a contender must not always follow the same one
        order.reverse()
        # each look costs as much as all rounds before it
        looks = (done + 1 - schedule.min_rounds) % LOOK_ROUNDS == 0
        if looks and done + 1 >= schedule.min_rounds and _are_precise(times, schedule.precise):
            break
    return {name: np.asarray(rows, np.float64) for name, rows in times.items()}


def _are_precise(times: Mapping[K, Sequence[Sequence[Any]]], limit: float) -> bool:
    """Return whether all ratios to the first contender are known to a relative half-width."""
    if not limit or len(times) < 2:
        return False
    medians = [np.median(_computing_times(np.asarray(rows)), axis=1) for rows in times.values()]
    ratios = medians[0] / np.array(medians[1:])
    low, middle, high = np.percentile(ratios, [25, 50, 75], axis=1)
    # a bootstrap of each round would take longer than the round: the median of normal values has
    # 1.25 times the deviation of their mean, and their quartiles are 1.35 deviations apart
    half_width = 1.96 * 1.25 * (high - low) / 1.35 / np.sqrt(ratios.shape[1])
    return bool(np.all(half_width <= limit * middle))


def _computing_times(times: np.ndarray) -> np.ndarray:
    """Return times of shape (rounds, block), by the CPU clock if there are two."""
    return times[..., CPU] if times.ndim == 3 else times


def summarize(
    engine: str,
    model: str,
    times: np.ndarray,
    *,
    threads: int = 1,
    precision: str = "f32",
    version: str = "",
) -> Measurement:
    """Return the statistics of one contender's times of shape (rounds, block) or by two clocks."""
    cpu_ms = float(np.median(times[..., CPU])) if times.ndim == 3 else None
    times = times[..., WALL] if times.ndim == 3 else times
    # over single inferences
    q1, median, q3, p99 = np.percentile(times, [25, 50, 75, 99])
    # over medians per round: drift between rounds, not jitter
    low, middle, high = np.percentile(np.median(times, axis=1), [25, 50, 75])
    count = min(times.size, MOST_QUANTILES)
    quantiles = np.quantile(times, (np.arange(count) + 0.5) / count)
    return Measurement(
        engine,
        model,
        samples=times.size,
        rounds=len(times),
        median_ms=float(median),
        min_ms=float(times.min()),
        mean_ms=float(times.mean()),
        p99_ms=float(p99),
        q1_ms=float(q1),
        q3_ms=float(q3),
        noise=float((high - low) / middle),
        threads=threads,
        precision=precision,
        version=version,
        times_ms=tuple(float(f"{value:.4g}") for value in quantiles),
        cpu_ms=cpu_ms,
    )


def ratio(
    base: str, base_times: np.ndarray, contender: str, times: np.ndarray, *, seed: int = 0
) -> Ratio:
    """Return the median of base / contender over paired rounds, with a bootstrap interval.

    The interval is taken by the percentile method. Times by two clocks are compared by the CPU
    clock, which other programs disturb less.
    """
    base_times, times = _computing_times(base_times), _computing_times(times)
    # rounds are paired because drift is common to both contenders of a round
    paired = np.median(base_times, axis=1) / np.median(times, axis=1)
    # rounds are resampled, not inferences: those of a round are correlated
    draws = np.random.default_rng(seed).integers(0, len(paired), (BOOTSTRAP, len(paired)))
    # the median again, as the reported figure is one
    low, high = np.percentile(np.median(paired[draws], axis=1), [2.5, 97.5])
    return Ratio(base, contender, float(np.median(paired)), float(low), float(high))


def machine_warnings(threads: int, cores: Sequence[int] = ()) -> list[str]:
    """Return what makes times on this machine less certain, before measuring."""
    warnings = []
    # of the last minute: the longer averages include what has ended since
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY_LOAD:
        warnings.append(
            f"load average is {load:.1f} (limit {BUSY_LOAD:g}): other programs are running; "
            "ratios are more reliable than single times"
        )
    allowed = count_cpus()
    if threads > allowed:
        warnings.append(
            f"{threads} threads compete for {allowed} CPUs; pass --bench-threads {allowed} or less"
        )
    # with as many threads as CPUs there is none to migrate to
    elif not cores and allowed > threads:
        warnings.append(
            f"threads may migrate between {allowed} CPUs; pin with --pin or run under taskset"
        )
    return warnings


def noise_warnings(measurements: Sequence[Measurement]) -> list[str]:
    """Return a warning for each measurement that waited for a CPU or whose rounds differ much."""
    waited = [
        f"{m.model} on {m.engine} waited for a CPU: {m.median_ms:.3g} ms per inference, of which "
        f"{m.cpu_ms:.3g} ms are computing; the speed-up compares the latter"
        for m in measurements
        if m.cpu_ms is not None and m.median_ms > WAIT_LIMIT * m.cpu_ms
    ]
    return waited + [
        f"{m.model} on {m.engine}: interquartile range of the rounds is {m.noise:.0%} of the "
        f"median (limit {NOISE_LIMIT:.0%}); measure longer or on an idle machine"
        for m in measurements
        if m.noise > NOISE_LIMIT
    ]
