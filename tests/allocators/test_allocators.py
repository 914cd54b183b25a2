"""Plans from scores: budgets, allowed widths, and the order of removal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from graph_text import net
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.allocators import ALLOCATORS, knapsack
from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints, Ranking, WidthStep, ordered, widths
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.errors import TargetError, UsageError
from onnxprune.ir.io import load
from onnxprune.testing.plans import check_plan
from onnxprune.types import Plan, Scores

NAMES = ("uniform", "threshold", "knapsack")
CONVOLUTIONS = (
    "float[1,4,8,8] x | float[16,4,3,3] w1, float[24,16,3,3] w2, float[16,24,1,1] w3, "
    "float[12,16,1,1] w4, float[5,12,1,1] w5 |"
    "a = Conv<pads=[1,1,1,1]>(x, w1); r = Relu(a); b = Conv<pads=[1,1,1,1]>(r, w2); "
    "s = Relu(b); c = Conv(s, w3); d = Add(a, c); e = Conv<strides=[2,2]>(d, w4); "
    "y = Conv(e, w5)"
)
ANALYSIS = analyze(load(net(CONVOLUTIONS)))
HELD = analyze(
    load(
        net(
            "float[1,64] x | float[64,64] w0, float[64,8] w1, float[8,4] w2 | "
            "y = MatMul(x, w0); a = MatMul(x, w1); z = MatMul(a, w2) | float[] y, float[] z"
        )
    )
)
COSTS = ("macs", "params", "bytes", "activation_bytes")
budgets = st.fixed_dictionaries({}, optional={c: st.floats(0.35, 1.1) for c in COSTS})


def scores_of(seed: int, analysis: Analysis = ANALYSIS) -> Scores:
    rng = np.random.default_rng(seed)
    return {g.name: rng.lognormal(0, 1, g.size) for g in analysis.groups}


def planned(name: str, scores: Scores, **constraints: Any) -> Plan:
    return allocate(name, Context(ANALYSIS), scores, Constraints(**constraints))


def absolute(shares: dict[str, float]) -> dict[str, float]:
    original = ANALYSIS.cost().as_dict()
    return {c: share * original[c] for c, share in shares.items()}


def kept_of(plan: Plan) -> dict[str, set[int]]:
    return {g.name: set(plan.kept.get(g.name, range(g.size))) for g in ANALYSIS.groups}


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(NAMES),
    budgets,
    st.integers(0, 10**6),
    st.sampled_from([1, 1, 4]),
    st.sampled_from([1, 3]),
)
def test_plans_meet_the_budget_and_no_step_is_unneeded(
    name: str, shares: dict[str, float], seed: int, round_to: int, floor: int
) -> None:
    scores, limits = scores_of(seed), absolute(shares)
    plan = planned(name, scores, budgets=limits, round_to=round_to, floor=floor)
    costs = ANALYSIS.cost(plan.kept).as_dict()
    assert all(costs[c] <= limit for c, limit in limits.items())
    for group in ANALYSIS.groups:
        count = len(plan.kept.get(group.name, range(group.size)))
        assert count == group.size or count % round_to == 0
        assert count >= min(floor, group.size)
        assert group.size - count <= 0.9 * group.size
        if count == group.size:
            continue
        chain = widths(group.size, Constraints(round_to=round_to, floor=floor))
        wider = chain[chain.index(count) - 1]
        back = dict(plan.kept) | {
            group.name: sorted(np.argsort(-scores[group.name])[:wider].tolist())
        }
        more = ANALYSIS.cost(back).as_dict()
        assert any(more[c] > limit for c, limit in limits.items()), (
            f"{group.name} lost a step more than was asked for"
        )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 10**6))
def test_least_important_channels_are_removed_first(name: str, seed: int) -> None:
    scores = scores_of(seed)
    for group, kept in kept_of(planned(name, scores, budgets=absolute({"macs": 0.5}))).items():
        gone = set(range(len(scores[group]))) - kept
        assert not gone or scores[group][list(gone)].max() <= scores[group][list(kept)].min()


@pytest.mark.parametrize("name", NAMES)
def test_plans_meet_their_contract_and_are_deterministic(name: str) -> None:
    plan = planned(name, scores_of(3), budgets=absolute({"macs": 0.6}))
    check_plan(ANALYSIS, plan)
    assert plan == planned(name, scores_of(3), budgets=absolute({"macs": 0.6}))


@pytest.mark.parametrize("name", NAMES)
def test_a_met_budget_removes_nothing(name: str) -> None:
    assert not planned(name, scores_of(0), budgets=absolute({"macs": 1.0})).kept
    assert not planned(name, scores_of(0)).kept


def test_uniform_removes_the_same_share_of_all_groups() -> None:
    plan = planned("uniform", scores_of(0), budgets=absolute({"params": 0.4}))
    shares = [1 - len(plan.kept[g.name]) / g.size for g in ANALYSIS.groups]
    assert max(shares) - min(shares) <= max(1 / g.size for g in ANALYSIS.groups) + 1e-9


def test_threshold_does_not_depend_on_the_scale_of_a_group() -> None:
    scores = scores_of(1)
    scaled = {g: 1000.0**i * s for i, (g, s) in enumerate(scores.items())}
    limits = absolute({"macs": 0.5})
    assert (
        planned("threshold", scores, budgets=limits).kept
        == planned("threshold", scaled, budgets=limits).kept
    )


def test_knapsack_removes_the_least_energy() -> None:
    """A group whose second half has scores of zero loses it before other groups lose anything."""
    scores = {g.name: np.ones(g.size) for g in ANALYSIS.groups}
    worthless = ANALYSIS.groups[1]
    scores[worthless.name] = np.where(np.arange(worthless.size) % 2, 1.0, 1e-6)
    plan = planned("knapsack", scores, budgets=absolute({"macs": 0.8}))
    assert list(plan.kept) == [worthless.name]
    assert all(i in plan.kept[worthless.name] for i in range(1, worthless.size, 2))


def test_ratios_are_fixed_and_the_rest_meets_the_budget() -> None:
    first, second = ANALYSIS.groups[0], ANALYSIS.groups[1]
    plan = planned(
        "knapsack",
        scores_of(2),
        budgets=absolute({"macs": 0.8}),
        ratios={first.name: 0.25, second.name: 0.0},
    )
    assert len(plan.kept[first.name]) == first.size * 3 // 4
    assert second.name not in plan.kept
    with pytest.raises(UsageError, match="matches no group"):
        planned("knapsack", scores_of(2), ratios={"nothing*": 0.5})


def test_a_group_without_scores_stays_unpruned() -> None:
    scores = scores_of(0)
    left_out = ANALYSIS.groups[1].name
    plan = planned(
        "uniform",
        {g: s for g, s in scores.items() if g != left_out},
        budgets=absolute({"macs": 0.7}),
    )
    assert left_out not in plan.kept


def test_unreachable_target_names_the_least_reachable_cost() -> None:
    with pytest.raises(TargetError) as caught:
        planned("knapsack", scores_of(0), budgets=absolute({"macs": 0.01}))
    assert "target macs <= 1.0% cannot be met" in caught.value.message
    least = float(caught.value.message.split("cannot be met: ")[1].split("%")[0]) / 100
    assert planned("knapsack", scores_of(0), budgets=absolute({"macs": least + 0.001})).kept


def test_unreachable_target_names_the_reason_of_the_largest_node() -> None:
    """A MatMul from graph input to output cannot shrink; a ratio of 0 fixes nodes that could."""
    with pytest.raises(TargetError, match=r"y \(graph input, graph output, "):
        allocate("uniform", Context(HELD), scores_of(0, HELD), Constraints({"macs": 1}))
    with pytest.raises(TargetError, match="its channels are prunable, but only down to the limits"):
        planned("uniform", scores_of(0), budgets={"macs": 1}, ratios={"*": 0.0})


def test_steps_are_ranked_once_for_all_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> Ranking:
        asked.append(len(steps))
        return knapsack.knapsack(context, scores, steps)

    context, budgets = Context(ANALYSIS), [absolute({"macs": share}) for share in (0.8, 0.6, 0.5)]
    alone = [planned("knapsack", scores_of(0), budgets=b).kept for b in budgets]
    module: Any = SimpleNamespace(counted=counted)
    monkeypatch.setitem(sys.modules, "counted", module)
    builtin: Any = ALLOCATORS.builtin
    monkeypatch.setitem(builtin, "counted", ("counted:counted", ""))
    assert [
        allocate("counted", context, scores_of(0), Constraints(b)).kept for b in budgets
    ] == alone
    assert len(asked) == 1
    allocate("counted", context, scores_of(1), Constraints(budgets[0]))
    allocate("counted", context, scores_of(1), Constraints(budgets[0], floor=8))
    assert len(asked) == 3


def test_scores_that_are_not_finite_are_an_error() -> None:
    scores = dict(scores_of(0))
    scores[ANALYSIS.groups[0].name] = np.full(ANALYSIS.groups[0].size, np.nan)
    with pytest.raises(UsageError, match="not finite"):
        planned("uniform", scores, budgets=absolute({"macs": 0.5}))


def test_an_unknown_allocator_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'uniform'"):
        planned("unifrom", scores_of(0))


@given(st.integers(1, 100), st.integers(1, 16), st.integers(1, 40), st.floats(0, 1))
def test_widths(size: int, round_to: int, floor: int, fraction: float) -> None:
    chain = widths(size, Constraints(round_to=round_to, floor=floor, max_fraction=fraction))
    assert chain[0] == size
    assert chain == sorted(set(chain), reverse=True)
    assert all(
        k % round_to == 0 and k >= floor and size - k <= fraction * size + 1e-6 and k >= 1
        for k in chain[1:]
    )


@given(st.integers(1, 80), st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(1, 8))
def test_half_block_adds_one_width(size: int, block: int, floor: int) -> None:
    plain, more = (
        widths(size, Constraints({}, round_to=block, floor=floor, half_block=half))
        for half in (False, True)
    )
    assert set(more) - set(plain) <= {block // 2} and set(plain) <= set(more)
    assert (block // 2 in more) == (
        block // 2 in plain
        or block > 1
        and floor <= block // 2 < size
        and block // 2 >= size - int(size * 0.9 + 1e-9)
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_order_is_total(values: list[int]) -> None:
    order = ordered(np.array(values, float))
    assert sorted(order.tolist()) == list(range(len(values)))
    assert all((values[a], -a) < (values[b], -b) for a, b in pairwise(order))


@pytest.mark.parametrize("written", ("fused", "decomposed"))
def test_unreachable_target_names_the_option_that_opens_a_normalization(written: str) -> None:
    norm = "n = LayerNormalization<axis=-1>(h, s, s)"
    if written == "decomposed":
        norm = (
            "m = ReduceMean<axes=[-1]>(h); d = Sub(h, m); p = Mul(d, d); "
            "v = ReduceMean<axes=[-1]>(p); r = Sqrt(v); n = Div(d, r)"
        )
    text = (
        "float[2,4] x | float[4,8] w1, float[8] s, float[8,16] w2, float[16,3] w3 |"
        f"h = MatMul(x, w1); {norm}; a = MatMul(n, w2); b = Relu(a); y = MatMul(b, w3)"
    )
    model = load(net(text))
    for opened in ((), ("LayerNormalization",)):
        analysis = analyze(model, allow_mixing=opened)
        with pytest.raises(TargetError) as caught:
            allocate("uniform", Context(analysis), scores_of(0, analysis), Constraints({"macs": 1}))
        assert ("--allow-mixing LayerNormalization" in caught.value.message) == (not opened)
