"""Timing two or more models against each other: interleaved, with the spread of the ratio.

Two runs one after the other measure the machine's mood as much as the models. Here every round times a block of each contender,
in an order that is reversed from round to round, so that drift falls on all of them alike; the ratio is taken within rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from onnxprune.engines.base import Measurement
from onnxprune.errors import UsageError

K = TypeVar("K")
Sampler = Callable[[int], Sequence[float]]
"""Times that many inferences and returns their milliseconds."""

NOISE_LIMIT = 0.10  # rounds that differ by more than this cannot show a gain of 10 %
BUSY_LOAD = 0.5  # runnable processes beside ours, on average over the last minute
BLOCK_MS = 10.0  # long enough that refilling the caches after the other contender's turn is a small part of a block
MAX_BLOCK = 64
MIN_ROUNDS, MAX_ROUNDS = 7, 200
BOOTSTRAP = 1000


@dataclass(frozen=True)
class Schedule:
    """How long to measure. seconds: for each contender, warm-up excluded; warmup: inferences of each before the first round."""

    seconds: float = 2.0
    warmup: int = 5
    min_rounds: int = MIN_ROUNDS
    max_rounds: int = MAX_ROUNDS

    def __post_init__(self) -> None:
        if self.warmup < 1 or not 1 <= self.min_rounds <= self.max_rounds or not self.seconds >= 0:
            raise UsageError("schedule", f"cannot measure with {self}")


SCHEDULE = Schedule()


@dataclass(frozen=True)
class Ratio:
    """How many times faster `contender` is than `base`: above 1 = faster. low, high: 95 % bootstrap interval over rounds."""

    base: str
    contender: str
    median: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """The interval does not contain 1."""
        return self.low > 1 or self.high < 1

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {**asdict(self), "clear": self.clear}


def interleave(samplers: Mapping[K, Sampler], schedule: Schedule = SCHEDULE) -> dict[K, np.ndarray]:
    """Times by contender, milliseconds, shape (rounds, block).

    The number of rounds is the same for all; a contender's block is as long as BLOCK_MS takes. The first inference
    of a block runs with caches that the others filled and is left out where a block has more than one.
    """
    warm = {name: min(sampler(schedule.warmup)) for name, sampler in samplers.items()}
    blocks = {
        name: int(np.clip(np.ceil(BLOCK_MS / max(t, 1e-6)), 1, MAX_BLOCK))
        for name, t in warm.items()
    }
    times: dict[K, list[Sequence[float]]] = {name: [] for name in samplers}
    order = list(samplers)
    end = time.perf_counter() + schedule.seconds * len(samplers)
    while (done := len(times[order[0]])) < schedule.max_rounds and (
        done < schedule.min_rounds or time.perf_counter() < end
    ):
        for name in order:
            extra = 1 if blocks[name] > 1 else 0
            times[name].append(samplers[name](blocks[name] + extra)[extra:])
        order.reverse()
    return {name: np.asarray(rows, np.float64) for name, rows in times.items()}


def summarize(
    engine: str,
    model: str,
    times: np.ndarray,
    *,
    threads: int = 1,
    precision: str = "f32",
    version: str = "",
) -> Measurement:
    """Statistics of the (rounds, block) times of one contender."""
    q1, median, q3, p99 = np.percentile(times, [25, 50, 75, 99])
    low, middle, high = np.percentile(np.median(times, axis=1), [25, 50, 75])
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
    )


def ratio(
    base: str, base_times: np.ndarray, contender: str, times: np.ndarray, *, seed: int = 0
) -> Ratio:
    """Median over rounds of base / contender, rounds paired, with a bootstrap interval (percentile method)."""
    paired = np.median(base_times, axis=1) / np.median(times, axis=1)
    draws = np.random.default_rng(seed).integers(0, len(paired), (BOOTSTRAP, len(paired)))
    low, high = np.percentile(np.median(paired[draws], axis=1), [2.5, 97.5])
    return Ratio(base, contender, float(np.median(paired)), float(low), float(high))


def machine_warnings(threads: int, cores: Sequence[int] = ()) -> list[str]:
    """What about this machine, before measuring, makes times less certain."""
    found = []
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if threads > allowed:
        found.append(
            f"{threads} threads on {allowed} CPUs: they wait for each other; pass --threads {allowed} or less"
        )
    elif not cores and allowed > threads:
        found.append(
            f"{threads} thread{'s' * (threads > 1)} may move between {allowed} CPUs; pin them with --pin, or run under taskset"
        )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY_LOAD:
        found.append(
            f"load average is {load:.1f}: other programs are running; ratios hold better than single times"
        )
    return found


def noise_warnings(measurements: Sequence[Measurement]) -> list[str]:
    """Contenders whose rounds differ too much."""
    return [
        f"{m.model} on {m.engine}: half of the rounds spread over {m.noise:.0%} of the median (limit {NOISE_LIMIT:.0%}); measure longer or on a quieter machine"
        for m in measurements
        if m.noise > NOISE_LIMIT
    ]
