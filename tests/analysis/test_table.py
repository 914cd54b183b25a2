"""Every row of the rule table and every movement operator: random cuts are exact."""

from __future__ import annotations

import numpy as np
import pytest
from bodies import BODIES
from cases import no_kernel
from dynamic import DYNAMIC
from graph_laws import (
    SEEN,
    assert_cost_as_predicted,
    assert_exact,
    assert_shapes_as_predicted,
    random_plan,
)
from graph_text import net
from graphs import CASES, NOTHING_TO_CUT, Case
from indexed import INDEXED
from new_rows import BY_REFERENCE, NEW_ROWS
from patterns import PATTERNS

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.movement import MOVES
from onnxprune.analysis.rules import RULES
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load

SEEDS = 3
ROWS = CASES | INDEXED | NEW_ROWS
ALL = ROWS | PATTERNS | DYNAMIC | BODIES


def analyzed(case: Case) -> Analysis:
    return analyze(load(net(case.text, opset=case.opset)), allow_mixing=case.allow)


@pytest.mark.parametrize("name", ALL)
def test_cut_equals_masked(name: str) -> None:
    case = ALL[name]
    analysis = analyzed(case)
    if case.groups is not None:
        assert tuple(sorted(g.size for g in analysis.groups)) == case.groups, analysis.frozen
    if not analysis.groups:
        return
    seen = 0.0
    for seed in range(SEEDS):
        plan = random_plan(analysis, np.random.default_rng(seed))
        pruned, found = assert_exact(analysis, plan)
        assert_shapes_as_predicted(analysis, plan, pruned)
        assert_cost_as_predicted(analysis, plan, pruned)
        seen = max(seen, found.masked_difference)
    assert seen > SEEN


def test_every_row_and_every_move_has_a_graph() -> None:
    """Every operator has a graph in which a channel that can be cut passes it."""
    covered: set[str] = set()
    for case in (ROWS | BY_REFERENCE | no_kernel.CASES).values():
        analysis = analyzed(case)
        for node in analysis.record.nodes:
            tensors = [analysis.record.tensors.get(n) for n in (*node.input, *node.output)]
            axes = [a for t in tensors if t is not None for a in t.axes] + [
                a
                for u in analysis.record.uses
                if analysis.record.nodes[u.node] is node
                for a in u.axes
            ]
            if any(
                isinstance(a, np.ndarray) and analysis.record.causes.reason(a) == 0 for a in axes
            ):
                covered.add(node.op_type)
    assert set(RULES) | set(MOVES) <= covered | NOTHING_TO_CUT


@pytest.mark.parametrize(
    "name", ("Conv_grouped", "ConvTranspose_grouped", "NhwcConv", "QLinearConv", "Conv_depthwise")
)
def test_policy_of_grouped_convolutions(name: str) -> None:
    """Of groups and positions in them, the policy freezes one kind, for every convolution."""
    case = (CASES | no_kernel.CASES)[name]
    model = load(net(case.text, opset=case.opset))
    sizes = {
        policy: sorted(g.size for g in analyze(model, grouped=policy).groups)
        for policy in ("both", "group", "position")
    }
    groups = 8 if name == "Conv_depthwise" else {"QLinearConv": 2}.get(name, 4)
    positions = list(sizes["both"])
    positions.remove(groups)
    assert positions or name == "Conv_depthwise"
    assert sizes["group"] == [groups]
    assert sizes["position"] == (positions or [groups])
