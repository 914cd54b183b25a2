"""Latency targets on a machine that runs other programs: CPU clock, correction, refusal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import cycle

import numpy as np
import pytest
from engine_nets import residual

from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.engines import ENGINES
from onnxprune.engines.base import Compiled, EngineOptions, random_feeds, static_inputs
from onnxprune.engines.bench import bench
from onnxprune.engines.measure import noise_warnings
from onnxprune.engines.measurement import Measurement
from onnxprune.errors import TargetError
from onnxprune.ir.io import Model
from onnxprune.report.collect import latency_rows
from onnxprune.run.planning import decide
from onnxprune.run.recipe import Recipe

ANALYSIS = analyze(residual(48))
CONTEXT = Context(ANALYSIS)
SCORES = CRITERIA.get("l2")(CONTEXT)
MS_PER_MAC = 1e-6
BUSY = "while True: pass"


class Timed(Compiled):
    """A model whose time is proportional to its MACs, times a factor that changes per sample."""

    outputs = ("y",)

    def __init__(self, model: Model, factors: Iterator[float]) -> None:
        self.ms, self.factors = MS_PER_MAC * analyze(model).cost().macs, factors

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {}

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        return [self.ms * next(self.factors) for _ in range(count)]


class TimedEngine:
    """Engine of such models; the first candidates seem slower by the factors of `slow`."""

    name, install = "timed", ""

    def __init__(self, factors: tuple[float, ...] = (1.0,), slow: tuple[float, ...] = ()) -> None:
        self.factors, self.slow, self.compiled = cycle(factors), iter(slow), 0

    def available(self) -> None:
        return None

    def compile(self, model: Model, options: EngineOptions) -> Timed:
        self.compiled += 1
        bias = 1.0 if self.compiled == 1 else next(self.slow, 1.0)
        return Timed(model, (bias * factor for factor in self.factors))


def search(engine: TimedEngine, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the share of the MACs that a plan for 1.5x keeps."""
    monkeypatch.setattr("onnxprune.run.planning.ENGINES.get", lambda name: engine)
    monkeypatch.setattr("onnxprune.run.planning.group_savings", lambda *_, **__: {})
    recipe = Recipe(
        target="latency.onnxruntime=1.5x",
        criterion="l2",
        allocate="knapsack",
        repair="none",
        engine="none",
        round_to=1,
    )
    plan = decide(CONTEXT, SCORES, recipe)
    return ANALYSIS.cost(plan.kept).macs / ANALYSIS.cost().macs


def test_a_search_that_was_misled_is_repeated_with_looser_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = search(TimedEngine(), monkeypatch)
    # a bisection takes about ten candidates: all of the first search seem 1.5 times slower
    misled = search(TimedEngine(slow=(1.5,) * 8), monkeypatch)
    assert exact == pytest.approx(1 / 1.5, rel=0.05)
    assert misled == pytest.approx(exact, rel=0.05)


def test_a_machine_on_which_equal_models_differ_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = tuple(np.random.default_rng(0).uniform(1, 3, 997).tolist())
    with pytest.raises(TargetError, match="varies by .* against itself") as caught:
        search(TimedEngine(noise), monkeypatch)
    assert caught.value.code == "machine-noisy"


# not ncnn, which runs in a process of its own because it may crash
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "mnn"])
def test_one_thread_computes_on_the_thread_that_calls(name: str) -> None:
    """Otherwise its CPU clock would miss the computing."""
    engine = ENGINES.get(name)
    if reason := engine.available():
        pytest.skip(reason)
    model, options = residual(64), EngineOptions(threads=1)
    with engine.compile(model, options) as compiled:
        assert compiled.computes_here
        feeds = random_feeds(static_inputs(model, {}))
        compiled.sample(feeds, 3)
        times = np.array(compiled.sample_clocks(feeds, 30))
    wall_ms, cpu_ms = np.quantile(times, 0.1, axis=0)
    # least times, of inferences that nothing interrupted
    assert cpu_ms > 0.5 * wall_ms


def test_other_threads_have_no_clock_of_their_own() -> None:
    model = residual(8)
    feeds = random_feeds(static_inputs(model, {}))
    with ENGINES.get("onnxruntime").compile(model, EngineOptions(threads=2)) as compiled:
        assert all(wall == cpu for wall, cpu in compiled.sample_clocks(feeds, 5))


def test_cpu_clock_does_not_run_while_others_have_the_cpu() -> None:
    """Two busy programs share the CPUs with the model."""
    engine, feeds = ENGINES.get("onnxruntime"), random_feeds(static_inputs(residual(48), {}))
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2)]
    try:
        with engine.compile(residual(48), EngineOptions()) as compiled:
            compiled.sample(feeds, 5)
            times = np.array(compiled.sample_clocks(feeds, 300))
    finally:
        for other in others:
            other.kill()
            other.wait()
    # reading the clocks takes a part of the difference
    assert times[:, 1].sum() <= 1.1 * times[:, 0].sum()
    # a turn of another program takes milliseconds, an inference a tenth of one
    assert np.quantile(times[:, 1], 0.99) < 2.0


def test_report_states_one_ratio() -> None:
    """The latency after is the latency before over the ratio, whatever the medians are."""
    report = bench([residual(16), residual(8)], layers=False).as_dict()
    for measurement in report["measurements"]:
        measurement["median_ms"] *= 7.0  # as if the machine had been busy
    row = latency_rows(report)["onnxruntime"]
    assert row.before_ms == report["measurements"][0]["cpu_ms"]
    assert row.after_ms == pytest.approx(row.before_ms / row.speedup)


def test_waiting_for_a_cpu_is_reported() -> None:
    common = {"samples": 9, "rounds": 9, "min_ms": 1.0, "mean_ms": 1.0, "p99_ms": 1.0}
    times = {"q1_ms": 1.0, "q3_ms": 1.0, "noise": 0.0}
    waited = Measurement("onnxruntime", "m", median_ms=8.0, cpu_ms=1.0, **common, **times)
    quiet = Measurement("onnxruntime", "m", median_ms=1.1, cpu_ms=1.0, **common, **times)
    other = Measurement("tensorrt", "m", median_ms=8.0, **common, **times)
    assert [text[:35] for text in noise_warnings([waited, quiet, other])] == [
        "m on onnxruntime waited for a CPU: "
    ]
