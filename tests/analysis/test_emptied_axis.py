"""No plan leaves an axis without positions when its groups keep channels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from graph_laws import assert_exact, plan_of
from graph_text import net

from onnxprune.allocators import ALLOCATORS
from onnxprune.allocators.allocate import Constraints, allocate
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.criteria.magnitude import l2
from onnxprune.errors import OnnxpruneError, UsageError
from onnxprune.ir.io import load
from onnxprune.surgery.cut import cut

# each picked position of `b` depends on a group (row) and on a position in it (column)
PICKED = """float[2,4,5,5] x | float[4,4,3,3] w1, float[6,2,3,3] w2, float[5,2,1,1] w3,
int64[2] i = {0, 4}
| a = Conv(x, w1); r = Relu(a); b = Conv<group=2>(r, w2); c = Gather<axis=1>(b, i);
y = Conv(c, w3)"""
DATA_FREE = ("uniform", "threshold", "knapsack")


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyze(load(net(PICKED)))


def _choices(analysis: Analysis):
    """Yield every way to keep at least one channel of each group."""
    ways = []
    for group in analysis.groups:
        sizes = range(1, group.size + 1)
        ways.append([c for k in sizes for c in itertools.combinations(range(group.size), k)])
    names = [g.name for g in analysis.groups]
    for choice in itertools.product(*ways):
        yield dict(zip(names, choice, strict=True))


def test_every_plan_leaves_a_position_and_is_exact(analysis: Analysis) -> None:
    emptied = 0
    for number, kept in enumerate(_choices(analysis)):
        plan = analysis.plan(kept)
        assert not analysis.emptied_axes(plan.kept)
        if analysis.emptied_axes(kept):
            emptied += 1
            assert_exact(analysis, plan)
        elif number % 17 == 0:
            assert_exact(analysis, plan)
    assert emptied, "the graph has no such plan, so nothing was tested"


def test_loaded_plan_that_empties_an_axis_is_refused_by_name(analysis: Analysis) -> None:
    kept = next(k for k in _choices(analysis) if analysis.emptied_axes(k))
    with pytest.raises(UsageError, match="without any.*together") as info:
        cut(analysis, plan_of(analysis, kept))
    assert info.value.code == "plan-empties-axis"


def test_bounds_of_a_slice_may_become_zero() -> None:
    """Channels before a slice are counted, but are no axis of a tensor."""
    sliced = analyze(
        load(
            net(
                "float[2,4,6,6] x | float[8,4,1,1] w1, int64[1] s = {1}, int64[1] e = {6}, "
                "int64[1] one = {1}, float[5,5,1,1] w2, float[5,8,1,1] w3 | a = Conv(x, w1); "
                "b = Slice(a, s, e, one); c = Conv(b, w2); d = Conv(a, w3); y = Add(c, d)"
            )
        )
    )
    first = next(g.name for g in sliced.groups if g.size == 3)
    plan = sliced.plan({first: (1, 2)})
    assert plan.kept == {first: (1, 2)}
    assert_exact(sliced, plan)


@pytest.mark.parametrize("name", DATA_FREE)
@pytest.mark.parametrize("share", np.linspace(0.2, 0.9, 8))
def test_allocators_leave_a_position(analysis: Analysis, name: str, share: float) -> None:
    assert name in ALLOCATORS
    context = Context(analysis)
    budgets = {"macs": share * analysis.cost().macs}
    try:
        plan = allocate(name, context, l2(context), Constraints(budgets, round_to=1))
    except OnnxpruneError as problem:
        assert problem.code == "target-unreachable"
        return
    assert_exact(analysis, plan)
