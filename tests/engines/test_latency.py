"""Latency of pruned candidates, measured during a search."""

from __future__ import annotations

import numpy as np
import pytest
from engine_nets import residual

from onnxprune.analysis.walk import analyze
from onnxprune.engines import ENGINES
from onnxprune.engines.base import Compiled, EngineOptions
from onnxprune.engines.cost.latency import Probe, _compute_noise
from onnxprune.engines.measure import Schedule

SHORT = Schedule(seconds=0.05, warmup=2, min_rounds=3, max_rounds=10)
ANALYSIS = analyze(residual(32))


def kept(width: int) -> dict[str, tuple[int, ...]]:
    return {group.name: tuple(range(width)) for group in ANALYSIS.groups}


def test_computed_latency_is_that_of_the_cut_model() -> None:
    """On an engine without noise the probe is exact."""
    engine = ENGINES.get("systolic16")
    with Probe(engine, ANALYSIS, schedule=SHORT) as probe:
        half = probe(kept(16))
        with (
            engine.compile(residual(16), EngineOptions()) as small,
            engine.compile(residual(32), EngineOptions()) as large,
        ):
            assert half == pytest.approx(small.sample({}, 1)[0])
            assert probe.original_ms == probe({}) == large.sample({}, 1)[0]
        assert half < probe.original_ms


def test_the_same_widths_are_measured_once() -> None:
    with Probe(ENGINES.get("onnxruntime"), ANALYSIS, schedule=SHORT) as probe:
        first = probe(kept(16))
        other = {name: tuple(range(16, 32)) for name in kept(16)}
        assert probe(other) == first > 0
        assert probe(kept(32)) == probe.original_ms
        assert probe.measured == 1


def test_times_are_relative_to_the_original_so_a_slower_machine_cancels() -> None:
    """Every inference slows down tenfold; the candidate takes a quarter of the original."""

    class Timed(Compiled):
        outputs = ("y",)

        def __init__(self, ms: float) -> None:
            self.ms = ms

        def run(self, feeds: object) -> dict[str, np.ndarray]:
            return {}

        def sample(self, feeds: object, count: int) -> list[float]:
            return [self.ms * speed[0]] * count

    class Engine:
        name, install = "timed", ""
        compiled = iter((4.0, 1.0))

        def available(self) -> None:
            return None

        def compile(self, *_: object) -> Timed:
            return Timed(next(self.compiled))

    speed = [1.0]
    with Probe(Engine(), ANALYSIS, schedule=SHORT) as probe:  # type: ignore[arg-type]
        speed[0] = 10.0
        assert probe.original_ms == 4.0
        assert probe(kept(16)) == pytest.approx(1.0)


def test_noise_of_blocks_of_different_sizes() -> None:
    """The warm-up of one model, timed as two, may give two sizes of blocks."""
    generator = np.random.default_rng(0)
    first, second = (1 + 0.01 * generator.random((12, size)) for size in (34, 35))
    assert 0 < _compute_noise(first, second) < 0.01
