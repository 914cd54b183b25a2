"""Group Fisher: normalizations against their definitions, budgets and widths, fix_subnet files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import demo
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import open_data
from onnxprune.engines import ENGINES
from onnxprune.engines.cost import savings
from onnxprune.engines.cost.channel_costs import channel_costs
from onnxprune.engines.cost.layers import LayerSpec
from onnxprune.errors import TargetError, UsageError
from onnxprune.files import json_lines
from onnxprune.ir.io import load
from onnxprune.run.adapter import input_types
from onnxprune.search.base import Search, part
from onnxprune.search.compose import reduce_model, unreduced
from onnxprune.search.group_fisher import GroupFisherSettings, _Scorer, group_fisher
from onnxprune.search.journal import Journal
from onnxprune.search.subnet import from_subnet, to_subnet, unit_names

FILES = demo.files()


def search(budget: float = 0.8, round_to: int = 4, **options: object) -> Search:
    analysis = analyze(load(FILES.model))
    data = open_data(FILES.calibration, input_types(analysis.model), samples=32)
    constraints = Constraints({"macs": budget * analysis.cost().macs}, round_to=round_to)
    return Search(
        Context(analysis, data, batch_size=16), constraints, options={"interval": 1, **options}
    )


def test_costs_by_hand() -> None:
    """Costs of a channel in MACs and in activations, of the one group of three convolutions.

    Conv 3 -> 8 (3x3, 10x10 out), depthwise 3x3, Conv 8 -> 5 (1x1).
    """
    text = """<ir_version: 8, opset_import: ["" : 17]> g (
        float[1, 3, 10, 10] x, float[8, 3, 3, 3] a, float[8, 1, 3, 3] d, float[5, 8, 1, 1] b
    ) => (float[1, 5, 10, 10] y) {
        h = Conv <pads = [1, 1, 1, 1]> (x, a)
        k = Conv <pads = [1, 1, 1, 1], group = 8> (h, d)
        y = Conv (k, b) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {"a": (8, 3, 3, 3), "d": (8, 1, 3, 3), "b": (5, 8, 1, 1)}.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        )
    del proto.graph.input[1:]
    analysis = analyze(load(proto.SerializeToString()))
    (group,) = analysis.groups
    flops = 100 * 9 * 3 + 100 * 9 + 100 * 5
    np.testing.assert_allclose(channel_costs(analysis, "flops")[group.name], flops / 1e9)
    np.testing.assert_allclose(channel_costs(analysis, "act")[group.name], 200 / 1e6)
    np.testing.assert_array_equal(channel_costs(analysis, "none")[group.name], 1)


def steps_of_eight(engine: object, spec: LayerSpec, options: object, cache: object = None) -> float:
    """A layer's time for tests: one millisecond per started block of eight output channels."""
    return float(-(-spec.weight[0] // 8))


def test_latency_is_the_next_step_down_the_staircase(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step from 20 to 16 channels of a Conv removes 4 and saves 1 ms: 0.25 ms per channel."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (
        float[1, 3, 10, 10] x, float[20, 3, 3, 3] a, float[5, 20, 1, 1] b
    ) => (float[1, 5, 10, 10] y) {
        h = Conv <pads = [1, 1, 1, 1]> (x, a)
        y = Conv (h, b) }"""
    proto = onnx.parser.parse_model(text)
    for name, shape in {"a": (20, 3, 3, 3), "b": (5, 20, 1, 1)}.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        )
    del proto.graph.input[1:]
    analysis = analyze(load(proto.SerializeToString()))
    (group,) = analysis.groups
    monkeypatch.setattr(savings, "time_layer", steps_of_eight)
    monkeypatch.setattr(
        type(ENGINES.get("onnxruntime")), "channel_multiple", lambda engine, precision: 8
    )
    np.testing.assert_allclose(channel_costs(analysis, "latency")[group.name], 0.25)
    np.testing.assert_allclose(
        channel_costs(analysis, "latency", least={group.name: 18})[group.name], 1e-12
    )  # 20 to 18: nothing saved


def test_a_search_by_latency_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies differ from run to run; a resumed search uses those in the journal."""
    monkeypatch.setattr(savings, "time_layer", steps_of_eight)
    whole = group_fisher(
        replace(search(normalization="latency"), journal=Journal(tmp_path / "j.jsonl"))
    )
    assert search().met(whole.kept)
    monkeypatch.setattr(savings, "time_layer", lambda *rest: 1 / 0)
    assert (
        group_fisher(
            replace(search(normalization="latency"), journal=Journal(tmp_path / "j.jsonl"))
        ).kept
        == whole.kept
    )


@pytest.mark.parametrize("normalization", ["none", "flops", "act"])
def test_the_budget_is_met_at_allowed_widths(normalization: str) -> None:
    here = search(normalization=normalization)
    plan = group_fisher(here)
    reached = here.analysis.cost(plan.kept).macs / here.analysis.cost().macs
    assert 0.7 < reached <= 0.8
    assert all(len(k) % 4 == 0 for k in plan.kept.values())


@pytest.mark.parametrize(
    ("budget", "share", "better"), [("macs", 0.7, "act"), ("activation_bytes", 0.8, "flops")]
)
def test_each_normalization_is_better_on_its_own_cost(
    budget: str, share: float, better: str
) -> None:
    """At the same share of the other's cost: fewer activations by "act", fewer MACs by "flops"."""
    left = {}
    for normalization in ("act", "flops"):
        here = search(round_to=1, normalization=normalization)
        whole = here.analysis.cost().as_dict()
        here = replace(
            here, constraints=replace(here.constraints, budgets={budget: share * whole[budget]})
        )
        left[normalization] = here.analysis.cost(group_fisher(here).kept).as_dict()
    own = {"act": "activation_bytes", "flops": "macs"}[better]
    other = "flops" if better == "act" else "act"
    assert left[better][own] < 0.95 * left[other][own]


def test_one_scoring_with_one_step_is_the_global_order() -> None:
    """With all channels in one step and no rounding, channels go by importance until the budget."""
    here = search(0.9, round_to=1, step=10**6, normalization="none")
    plan = group_fisher(here)
    scores = CRITERIA.get("fisher")(
        replace(here.context, data=part(here.context.statistics_data("a test"), 16))
    )
    ranked = sorted((float(v), n, i) for n, s in scores.items() for i, v in enumerate(s))
    gone: dict[str, set[int]] = {}
    for _, name, index in ranked:
        if here.met(
            {
                n: [c for c in range(here.analysis.group(n).size) if c not in g]
                for n, g in gone.items()
            }
        ):
            break
        gone.setdefault(name, set()).add(index)
    assert {
        n: set(range(here.analysis.group(n).size)) - set(k) for n, k in plan.kept.items()
    } == gone


def test_a_resumed_search_ends_with_the_same_plan(tmp_path: Path) -> None:
    whole = group_fisher(replace(search(), journal=Journal(tmp_path / "whole.jsonl")))
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    journal = Journal(tmp_path / "part.jsonl")
    assert (
        group_fisher(replace(search(), journal=journal)).kept == whole.kept
        and journal.measured == len(lines) - len(lines) // 2
    )


def step_scores(path: Path, **options: object) -> list[dict[str, list[float]]]:
    """Return the scores of each step of a search."""
    group_fisher(replace(search(0.4, **options), journal=Journal(path)))
    return [row["scores"] for row in json_lines(path)]


def test_later_scorings_see_refitted_weights(tmp_path: Path) -> None:
    """The first scoring is the same, as nothing is cut; the second sees the same channels."""
    own, refitted = (step_scores(tmp_path / str(refit), refit=refit) for refit in (False, True))
    assert own[0] == refitted[0] and own[1].keys() == refitted[1].keys()
    assert all(len(own[1][n]) == len(refitted[1][n]) for n in own[1]) and own[1] != refitted[1]


def test_importance_is_averaged_over_scorings() -> None:
    """By channel of the original: the second scoring sees a model without the first channel."""
    here = search()
    group, scorer = here.analysis.groups[0], _Scorer(here, GroupFisherSettings(refit=False))
    first = {group.name: np.arange(float(group.size))}
    np.testing.assert_array_equal(
        scorer.average(unreduced(here.analysis), first)[group.name], first[group.name]
    )
    step = reduce_model(here.analysis, {group.name: tuple(range(1, group.size))})
    (name,) = [n for n in step.origin if step.original_groups(n) == {group.name}]
    again = scorer.average(
        step, {name: np.full(group.size - 1, 3.0), "not in the original": np.ones(2)}
    )
    assert set(again) == {name}
    np.testing.assert_allclose(again[name], (np.arange(1.0, group.size) + 3) / 2)
    kept = [group_fisher(search(0.5, average=average)).kept for average in (True, False)]
    assert kept[0] != kept[1]


def test_fisher_is_the_default_criterion() -> None:
    assert group_fisher(replace(search(), criterion="fisher")).kept == group_fisher(search()).kept


def test_the_chosen_criterion_scores(tmp_path: Path) -> None:
    here = replace(search(normalization="none"), criterion="l2", journal=Journal(tmp_path / "j"))
    assert here.met(group_fisher(here).kept)
    first, expected = (
        next(iter(json_lines(tmp_path / "j")))["scores"],
        CRITERIA.get("l2")(here.context),
    )
    assert {n: list(v) for n, v in expected.items()} == first


def test_errors_name_the_problem() -> None:
    with pytest.raises(UsageError, match="flops"):
        group_fisher(search(normalization="flop"))
    with pytest.raises(TargetError, match="least width"):
        group_fisher(search(0.001, step=10**6))


def test_fix_subnet_round_trip() -> None:
    here = search()
    plan = group_fisher(here)
    counts = to_subnet(here.analysis, plan)
    assert set(counts) == set(unit_names(here.analysis).values()) and len(counts) == len(
        here.analysis.groups
    )
    scores = {
        g.name: np.isin(np.arange(g.size), plan.kept.get(g.name, ())).astype(np.float64)
        for g in here.analysis.groups
    }
    assert from_subnet(here.analysis, counts, scores).kept == plan.kept
    unit = next(iter(counts))
    with pytest.raises(UsageError, match="channels"):
        from_subnet(here.analysis, {unit: 0}, scores)
    with pytest.raises(UsageError, match="unit"):
        from_subnet(here.analysis, {"x_(0, 4)_4": 1}, scores)
