"""Allocation by divergence: what is measured, on which inputs, and the resulting plans."""

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
    "float[n,4,8,8] x | float[16,4,3,3] w1, float[24,16,3,3] w2, float[16,24,1,1] w3, "
    "float[12,16,1,1] w4, float[5,12,1,1] w5 |"
    "a = Conv<pads=[1,1,1,1]>(x, w1); r = Relu(a); b = Conv<pads=[1,1,1,1]>(r, w2); "
    "s = Relu(b); c = Conv(s, w3); d = Add(a, c);"
    "e = Conv<strides=[2,2]>(d, w4); f = Relu(e); y = Conv(f, w5)"
)
LAYER = (
    "float[n,3,6] x | float[6,12] w1, float[12,5] w2 | a = MatMul(x, w1); r = Relu(a); "
    "y = MatMul(r, w2)"
)


def context_of(text: str, silent: str = "", part: float = 1.0) -> Context:
    """Return the context of a network.

    silent: weight whose last filters (share `part`) are zero, so that their channels are zero.
    """
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
    steps = []
    for group in analysis.groups:
        chain = widths(group.size, constraints or Constraints())
        steps += [
            WidthStep(group.name, group.size, a, b, np.zeros(a - b), (0.0, 0.0))
            for a, b in zip(chain, chain[1:], strict=False)
        ]
    return steps


def curves(context: Context, scores: Scores) -> dict[str, np.ndarray]:
    """Damage by group, accumulated over its steps."""
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
def test_plans_meet_the_budget_and_no_step_is_unneeded(
    share: float, cost: str, round_to: int, floor: int, fraction: float
) -> None:
    """Every budget and limit is met, and no group could keep a step more."""
    context, scores = scored()
    analysis = context.analysis
    limits = Constraints(round_to=round_to, floor=floor, max_fraction=fraction)
    least = {g.name: tuple(range(widths(g.size, limits)[-1])) for g in analysis.groups}
    original = analysis.cost().as_dict()[cost]
    share = max(share, analysis.cost(least).as_dict()[cost] / original + 1e-3)
    plan = planned(
        context, scores, share, cost, round_to=round_to, floor=floor, max_fraction=fraction
    )
    check_plan(analysis, plan)
    assert analysis.cost(plan.kept).as_dict()[cost] <= share * original
    for name, kept in plan.kept.items():
        chain = widths(analysis.group(name).size, limits)
        assert len(kept) in chain
        wider = chain[chain.index(len(kept)) - 1]
        back = {**plan.kept, name: tuple(sorted(np.argsort(-scores[name])[:wider].tolist()))}
        assert analysis.cost(back).as_dict()[cost] > share * original, (
            f"{name} lost a step more than was asked for"
        )


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_predicted_cost_is_the_cost_of_the_cut_model(share: float) -> None:
    context, scores = scored()
    plan = planned(context, scores, share)
    smaller = analyze(cut(context.analysis, plan))
    assert smaller.cost().as_dict() == context.analysis.cost(plan.kept).as_dict()


def test_plans_are_deterministic() -> None:
    context, scores = scored()
    fresh = context_of(NETWORK)
    assert planned(context, scores, 0.6) == planned(fresh, reconstruction(fresh), 0.6)


def test_removal_follows_the_scores_and_grows_with_the_budget() -> None:
    context, scores = scored()
    macs = []
    for share in (0.9, 0.75, 0.6, 0.45):
        plan = planned(context, scores, share)
        macs.append(context.analysis.cost(plan.kept).macs)
        for name, kept in plan.kept.items():
            removed = np.setdiff1d(np.arange(len(scores[name])), kept)
            assert scores[name][removed].max() <= scores[name][list(kept)].min()
    assert macs == sorted(macs, reverse=True) and len(set(macs)) == 4


def test_ratios_are_fixed_and_the_rest_meets_the_budget() -> None:
    context, scores = scored()
    first, second = context.analysis.groups[0], context.analysis.groups[1]
    plan = planned(context, scores, 0.75, ratios={first.name: 0.25, second.name: 0.0})
    assert len(plan.kept[first.name]) == first.size * 3 // 4 and second.name not in plan.kept
    assert context.analysis.cost(plan.kept).macs <= 0.75 * context.analysis.cost().macs


def test_damage_is_nonnegative_and_does_not_decrease() -> None:
    for curve in curves(*scored()).values():
        assert (
            (np.diff(curve, prepend=0.0) >= 0).all() and np.isfinite(curve).all() and curve[-1] > 0
        )


def test_zero_channels_are_removed_first() -> None:
    """Half of one layer's filters are zero: removing them meets a mild budget at no damage."""
    context = context_of(NETWORK, silent="w2", part=0.5)
    scores = reconstruction(context)
    curve = curves(context, scores)["b"]
    assert curve[11] <= 1e-6 * curve[-1]
    plan = planned(context, scores, 0.75)
    assert list(plan.kept) == ["b"] and set(range(12)) <= set(plan.kept["b"])


def test_damage_is_the_output_error_after_a_refit() -> None:
    """By definition: ridge regression on one part of the data, error per variance on the other."""
    context = context_of(LAYER)
    scores = reconstruction(context)
    (group,) = context.analysis.groups
    curve = curves(context, scores)[group.name]
    weight = context.analysis.model.weights["w2"].array().astype(np.float64)
    session = Session(context.analysis.model, ["r", "y"])

    def values(data: Data) -> tuple[np.ndarray, np.ndarray]:
        runs = [session.run(b) for b in data.batches(8)]
        x, y = (
            np.concatenate([r[n].reshape(-1, r[n].shape[-1]) for r in runs]).astype(np.float64)
            for n in ("r", "y")
        )
        return x, y

    (x, _), (gate, y) = values(context.statistics_data("")), values(context.gate_data(""))
    removed = np.argsort(scores[group.name], kind="stable")[: len(curve)]
    kept = np.setdiff1d(np.arange(group.size), removed)
    moments = np.cov(x.T, bias=True)
    moments += 1e-3 * np.trace(moments) / len(moments) * np.eye(len(moments))
    refitted = np.linalg.solve(moments[np.ix_(kept, kept)], moments[kept] @ weight)
    constant = x.mean(0) @ weight - x.mean(0)[kept] @ refitted
    # the variance over samples at each position, as the output is (samples, positions, channels)
    shape = next(iter(session.run(b)["y"] for b in context.gate_data("").batches(8))).shape
    centered = y.reshape(-1, *shape[1:])
    centered = centered - centered.mean(0)
    error = np.square(gate[:, kept] @ refitted + constant - y).sum() / np.square(centered).sum()
    np.testing.assert_allclose(curve[-1], error, rtol=SINGLE)


def test_gate_samples_are_not_used_for_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = context_of(NETWORK)
    seen: dict[str, list[np.ndarray]] = {"statistics": [], "measured": []}
    collect, run = statistics.collect_moments, module.SegmentedRun

    def collect_recorded(analysis: Analysis, data: Data, **options: Any) -> Any:
        seen["statistics"] += [b["x"] for b in data.batches(8)]
        return collect(analysis, data, **options)

    def start_recorded(model: Any, batches: list[dict[str, np.ndarray]], **options: Any) -> Any:
        seen["measured"] += [b["x"] for b in batches]
        return run(model, batches, **options)

    monkeypatch.setattr(statistics, "collect_moments", collect_recorded)
    monkeypatch.setattr(module, "SegmentedRun", start_recorded)
    planned(context, reconstruction(context), 0.7)
    sets = {
        what: {row.tobytes() for batch in batches for row in batch}
        for what, batches in seen.items()
    }
    assert len(sets["statistics"]) == SAMPLES * 3 // 4 and len(sets["measured"]) == SAMPLES // 4
    assert not sets["statistics"] & sets["measured"]


def test_divergence_needs_data() -> None:
    context = context_of(NETWORK)
    with pytest.raises(DataError, match="calibration data"):
        planned(
            Context(context.analysis),
            {g.name: np.ones(g.size) for g in context.analysis.groups},
            0.7,
        )
