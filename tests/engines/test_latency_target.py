"""Budgets on latency, on a computed engine so that it is exact."""

from __future__ import annotations

import pytest
from engine_nets import residual

from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions, random_feeds, static_inputs
from onnxprune.engines.bench_warnings import width_warnings
from onnxprune.engines.cost.latency import Probe
from onnxprune.engines.measure import Schedule
from onnxprune.errors import TargetError, UsageError
from onnxprune.ir.io import Model
from onnxprune.ir.quantize import is_quantized
from onnxprune.run.adapter import channel_multiple, engines_of, follows_engine
from onnxprune.run.planning import decide
from onnxprune.run.recipe import Recipe
from onnxprune.run.timed_form import check_timed_type, probe_options
from onnxprune.surgery.cut import cut

QUICK = Schedule(seconds=0.0, warmup=1, min_rounds=1, max_rounds=1)
ANALYSIS = analyze(residual(48))
CONTEXT = Context(ANALYSIS)
SCORES = CRITERIA.get("l2")(CONTEXT)
ENGINE = ENGINES.get("systolic8")


def plan(share: float, round_to: int, budgets: dict[str, float] | None = None):
    with Probe(ENGINE, ANALYSIS, schedule=QUICK) as probe:
        limits = {"latency.systolic8": share * probe.original_ms, **(budgets or {})}
        return allocate(
            "knapsack",
            CONTEXT,
            SCORES,
            Constraints(limits, round_to=round_to, measures={"latency.systolic8": probe}),
        ), probe


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("round_to", [1, 8])
def test_the_cut_model_meets_it_and_no_smaller_cut_would(share: float, round_to: int) -> None:
    result, probe = plan(share, round_to)
    with ENGINE.compile(cut(ANALYSIS, result), EngineOptions()) as compiled:
        assert compiled.sample({}, 1)[0] <= share * probe.original_ms
    assert all(len(channels) % round_to == 0 for channels in result.kept.values())
    sizes = {name: len(channels) for name, channels in result.kept.items()}
    wider = {name: tuple(range(min(48, width + round_to))) for name, width in sizes.items()}
    with Probe(ENGINE, ANALYSIS, schedule=QUICK) as again:
        assert again(wider) > share * probe.original_ms


def test_it_holds_beside_a_budget_on_macs() -> None:
    macs = ANALYSIS.cost().macs
    result, _ = plan(0.95, 8, {"macs": 0.4 * macs})
    assert ANALYSIS.cost(result.kept).macs <= 0.4 * macs


def test_an_unreachable_target_names_the_least_latency() -> None:
    with pytest.raises(TargetError, match=r"target latency.systolic8 <= 1.0% cannot be met: \d"):
        plan(0.01, 8)


@pytest.mark.parametrize(
    ("options", "multiple", "half"),
    [
        ({"target": "latency.systolic16=1.5x"}, 16, True),
        ({"target": "latency.openvino=1.5x"}, 1, True),
        ({"target": "macs=50%"}, 8, False),
        ({"target": "macs=50%", "round_to": "auto", "engine": "systolic32"}, 32, True),
        ({"target": "latency.systolic16=1.5x", "round_to": 4}, 4, False),
    ],
)
def test_widths_follow_the_engine_where_it_is_the_target(
    options: dict[str, object], multiple: int, half: bool
) -> None:
    recipe = Recipe(**options)
    assert (channel_multiple(recipe), follows_engine(recipe)) == (multiple, half)


def test_the_engine_of_the_target_comes_first_and_its_layers_are_explained() -> None:
    assert engines_of(
        Recipe(target="latency.systolic16=1.5x", engine="onnxruntime,systolic16,mnn")
    ) == ["systolic16", "onnxruntime", "mnn"]


def test_a_latency_target_cuts_to_blocks_of_its_engine_or_half_of_one() -> None:
    recipe = Recipe(
        target="latency.systolic16=1.7x",
        criterion="l2",
        allocate="knapsack",
        repair="none",
        engine="none",
    )
    kept = decide(CONTEXT, SCORES, recipe).kept
    assert kept and all(len(channels) in (8, 16, 32) for channels in kept.values())


def test_candidates_are_timed_in_the_type_of_the_written_model() -> None:
    converted = []

    def convert(model: Model) -> Model:
        converted.append(model)
        return residual(16)

    with Probe(ENGINE, ANALYSIS, schedule=QUICK, convert=convert) as probe:
        assert probe({}) < 0.5 * probe.original_ms and len(converted) == 1
        budgets = {"latency.systolic8": 0.5 * probe.original_ms}
        limits = Constraints(budgets, measures={"latency.systolic8": probe})
        # the type alone meets the target, so nothing is removed
        assert not allocate("knapsack", CONTEXT, SCORES, limits).kept
        limits = Constraints(
            {"latency.systolic8": 1e-3 * probe.original_ms},
            measures={"latency.systolic8": probe},
        )
        with pytest.raises(TargetError, match="<= 0.1% cannot be met"):
            allocate("knapsack", CONTEXT, SCORES, limits)


def test_no_float_graph_is_timed_in_int8() -> None:
    recipe = Recipe(target="latency.onnxruntime=2x", precision="int8")
    with pytest.raises(UsageError, match="pass --quantize int8"):
        check_timed_type(ANALYSIS.model, recipe)
    check_timed_type(ANALYSIS.model, Recipe(target="latency.onnxruntime=2x", quantize="int8"))
    engine = ENGINES.get("onnxruntime")
    feed = random_feeds(static_inputs(ANALYSIS.model, {}))
    options = probe_options(engine, ANALYSIS.model, Recipe(quantize="int8"), feed)
    candidate = options["convert"](ANALYSIS.model)
    assert is_quantized(candidate) and options["precision"] == "int8"
    assert not probe_options(engine, candidate, Recipe(quantize="int8"), feed)
    assert not probe_options(ENGINE, ANALYSIS.model, Recipe(quantize="int8"), feed)

    # widths of quantized graphs are seen, and judged by the blocks of int8
    wide = options["convert"](residual(22))
    (warning,) = width_warnings(engine, {"wide": wide})
    assert "rounds up to multiples of 4" in warning
    assert not width_warnings(engine, {"wide": options["convert"](residual(20))})


def test_multiples_follow_precision_and_operator() -> None:
    recipe = Recipe(quantize="int8", target="latency.onnxruntime=2x")
    assert (channel_multiple(recipe), channel_multiple(recipe, depthwise=True)) == (4, 16)
