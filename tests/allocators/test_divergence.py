"""Allocation by what a cut does to the outputs: what is measured, on which inputs, and which plans it leads to."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from graph_text import net
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.allocators import divergence as module
from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints, WidthStep, widths
from onnxprune.allocators.divergence import divergence
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import reconstruction as statistics
from onnxprune.criteria.base import Context
from onnxprune.criteria.reconstruction import reconstruction
from onnxprune.data.dataset import Data, synthetic
from onnxprune.errors import DataError
from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session
from onnxprune.run.adapter import input_types
from onnxprune.surgery.cut import cut
from onnxprune.testing.plans import check_plan
from onnxprune.types import Plan, Scores

SAMPLES = 40  # of which a quarter measures
SINGLE = 1e-3  # relative, of divergences from outputs in single precision
NETWORK = (
    "float[n,4,8,8] x | float[16,4,3,3] w1, float[24,16,3,3] w2, float[16,24,1,1] w3, float[12,16,1,1] w4, float[5,12,1,1] w5 |"
    "a = Conv<pads=[1,1,1,1]>(x, w1); r = Relu(a); b = Conv<pads=[1,1,1,1]>(r, w2); s = Relu(b); c = Conv(s, w3); d = Add(a, c);"
    "e = Conv<strides=[2,2]>(d, w4); f = Relu(e); y = Conv(f, w5)"
)
LAYER = "float[n,3,6] x | float[6,12] w1, float[12,5] w2 | a = MatMul(x, w1); r = Relu(a); y = MatMul(r, w2)"


def context_of(text: str, silent: str = "", part: float = 1.0) -> Context:
    """silent: a weight of which the later part of the filters is zero, so that these channels give nothing."""
    model = net(text)
    for tensor in model.graph.initializer:
        if tensor.name == silent:
            values = np.frombuffer(tensor.raw_data, np.float32).reshape(tensor.dims).copy()
            values[round(len(values) * (1 - part)) :] = 0.0
            tensor.raw_data = values.tobytes()
    analysis = analyze(load(model))
    return Context(
        analysis, synthetic(input_types(analysis.model), samples=SAMPLES, seed=3), batch_size=8
    )


@cache
def scored() -> tuple[Context, Scores]:
    context = context_of(NETWORK)
    return context, reconstruction(context)


def planned(
    context: Context, scores: Scores, share: float, cost: str = "macs", **constraints: Any
) -> Plan:
    budget = {cost: share * context.analysis.cost().as_dict()[cost]}
    return allocate("divergence", context, scores, Constraints(budgets=budget, **constraints))


def steps_of(analysis: Analysis, constraints: Constraints | None = None) -> list[WidthStep]:
    found = []
    for group in analysis.groups:
        chain = widths(group.size, constraints or Constraints())
        found += [
            WidthStep(group.name, group.size, a, b, np.zeros(a - b), (0.0, 0.0))
            for a, b in zip(chain, chain[1:], strict=False)
        ]
    return found


def curves(context: Context, scores: Scores) -> dict[str, np.ndarray]:
    """Damage by group, cumulated over its steps."""
    steps = steps_of(context.analysis)
    values = divergence(context, scores, steps).values
    return {
        g.name: np.cumsum([v for s, v in zip(steps, values, strict=False) if s.group == g.name])
        for g in context.analysis.groups
    }


@settings(max_examples=12, deadline=None)
@given(
    st.floats(0.35, 0.95),
    st.sampled_from(["macs", "params", "bytes", "activation_bytes"]),
    st.sampled_from([1, 4]),
    st.sampled_from([1, 3]),
    st.sampled_from([0.5, 0.9]),
)
def test_within_the_budget_and_no_further(
    share: float, cost: str, round_to: int, floor: int, fraction: float
) -> None:
    """Every budget is met, no group could keep a step more, and no limit of a group is passed."""
    context, scores = scored()
    analysis = context.analysis
    limits = Constraints(round_to=round_to, floor=floor, max_fraction=fraction)
    least = {g.name: tuple(range(widths(g.size, limits)[-1])) for g in analysis.groups}
    whole = analysis.cost().as_dict()[cost]
    share = max(share, analysis.cost(least).as_dict()[cost] / whole + 1e-3)
    plan = planned(
        context, scores, share, cost, round_to=round_to, floor=floor, max_fraction=fraction
    )
    check_plan(analysis, plan)
    assert analysis.cost(plan.kept).as_dict()[cost] <= share * whole
    for name, kept in plan.kept.items():
        chain = widths(analysis.group(name).size, limits)
        assert len(kept) in chain
        wider = chain[chain.index(len(kept)) - 1]
        back = {**plan.kept, name: tuple(sorted(np.argsort(-scores[name])[:wider].tolist()))}
        assert analysis.cost(back).as_dict()[cost] > share * whole, (
            f"{name} lost a step more than was asked for"
        )


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_what_a_plan_is_said_to_cost_is_what_the_cut_model_costs(share: float) -> None:
    context, scores = scored()
    plan = planned(context, scores, share)
    smaller = analyze(cut(context.analysis, plan))
    assert smaller.cost().as_dict() == context.analysis.cost(plan.kept).as_dict()


def test_the_same_twice() -> None:
    context, scores = scored()
    fresh = context_of(NETWORK)
    assert planned(context, scores, 0.6) == planned(fresh, reconstruction(fresh), 0.6)


def test_the_least_important_go_first_and_a_tighter_budget_removes_more() -> None:
    context, scores = scored()
    macs = []
    for share in (0.9, 0.75, 0.6, 0.45):
        plan = planned(context, scores, share)
        macs.append(context.analysis.cost(plan.kept).macs)
        for name, kept in plan.kept.items():
            gone = np.setdiff1d(np.arange(len(scores[name])), kept)
            assert scores[name][gone].max() <= scores[name][list(kept)].min()
    assert macs == sorted(macs, reverse=True) and len(set(macs)) == 4


def test_ratios_are_fixed_and_the_rest_meets_the_budget() -> None:
    context, scores = scored()
    first, second = context.analysis.groups[0], context.analysis.groups[1]
    plan = planned(context, scores, 0.75, ratios={first.name: 0.25, second.name: 0.0})
    assert len(plan.kept[first.name]) == first.size * 3 // 4 and second.name not in plan.kept
    assert context.analysis.cost(plan.kept).macs <= 0.75 * context.analysis.cost().macs


def test_damage_never_falls_and_never_is_negative() -> None:
    for curve in curves(*scored()).values():
        assert (
            (np.diff(curve, prepend=0.0) >= 0).all() and np.isfinite(curve).all() and curve[-1] > 0
        )


def test_channels_that_give_nothing_go_first() -> None:
    """Half of one layer's filters are zero: they alone meet a mild budget, and cost nothing."""
    context = context_of(NETWORK, silent="w2", part=0.5)
    scores = reconstruction(context)
    curve = curves(context, scores)["b"]
    assert curve[11] <= 1e-6 * curve[-1]
    plan = planned(context, scores, 0.75)
    assert list(plan.kept) == ["b"] and set(range(12)) <= set(plan.kept["b"])


def test_what_is_measured_is_the_error_of_the_outputs_after_a_refit() -> None:
    """By definition: ridge regression on one part of the data, relative squared error of the outputs on the other."""
    context = context_of(LAYER)
    scores = reconstruction(context)
    (group,) = context.analysis.groups
    found = curves(context, scores)[group.name]
    weight = context.analysis.model.weights["w2"].array().astype(np.float64)
    session = Session(context.analysis.model, ["r", "y"])

    def values(data: Data) -> tuple[np.ndarray, np.ndarray]:
        runs = [session.run(b) for b in data.batches(8)]
        return tuple(
            np.concatenate([r[n].reshape(-1, r[n].shape[-1]) for r in runs]).astype(np.float64)
            for n in ("r", "y")
        )  # type: ignore[return-value]

    (x, _), (gate, y) = values(context.statistics_data("")), values(context.gate_data(""))
    gone = np.argsort(scores[group.name], kind="stable")[: len(found)]
    kept = np.setdiff1d(np.arange(group.size), gone)
    moments = np.cov(x.T, bias=True)
    moments += 1e-3 * np.trace(moments) / len(moments) * np.eye(len(moments))
    refitted = np.linalg.solve(moments[np.ix_(kept, kept)], moments[kept] @ weight)
    constant = x.mean(0) @ weight - x.mean(0)[kept] @ refitted
    error = np.square(gate[:, kept] @ refitted + constant - y).sum() / np.square(y).sum()
    np.testing.assert_allclose(found[-1], error, rtol=SINGLE)


def test_inputs_that_measure_are_apart_from_those_of_the_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = context_of(NETWORK)
    seen: dict[str, list[np.ndarray]] = {"statistics": [], "measured": []}
    collect, run = statistics.collect_moments, module.SegmentedRun

    def collected(analysis: Analysis, data: Data, **options: Any) -> Any:
        seen["statistics"] += [b["x"] for b in data.batches(8)]
        return collect(analysis, data, **options)

    def started(model: Any, batches: list[dict[str, np.ndarray]], **options: Any) -> Any:
        seen["measured"] += [b["x"] for b in batches]
        return run(model, batches, **options)

    monkeypatch.setattr(statistics, "collect_moments", collected)
    monkeypatch.setattr(module, "SegmentedRun", started)
    planned(context, reconstruction(context), 0.7)
    sets = {
        what: {row.tobytes() for batch in batches for row in batch}
        for what, batches in seen.items()
    }
    assert len(sets["statistics"]) == SAMPLES * 3 // 4 and len(sets["measured"]) == SAMPLES // 4
    assert not sets["statistics"] & sets["measured"]


def test_without_data() -> None:
    context = context_of(NETWORK)
    with pytest.raises(DataError, match="calibration data"):
        planned(
            Context(context.analysis),
            {g.name: np.ones(g.size) for g in context.analysis.groups},
            0.7,
        )
