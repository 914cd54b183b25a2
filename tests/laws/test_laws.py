"""Laws of a cut, on random graphs of the operators of the rule table."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from graph_laws import (
    assert_composes,
    assert_cost_as_predicted,
    assert_exact,
    assert_finds_the_rest,
    assert_shapes_as_predicted,
    counted_macs,
    live_positions,
    no_axis_of_one,
    plan_of,
    random_plan,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper
from random_graphs import graphs

from onnxprune.analysis.blocks import removable_branches
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load, to_bytes
from onnxprune.surgery.cut import cut

SLOW_PARTS, SLOW_EXAMPLES = 4, 500
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
few = settings(
    max_examples=int(os.environ.get("ONNXPRUNE_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=_QUIET,
    derandomize=True,
)
many = settings(max_examples=SLOW_EXAMPLES, deadline=None, suppress_health_check=_QUIET)
seeds = st.integers(0, 2**16)
TOLERANCE = (
    1e-4  # products of many tensors grow and cancel, and the two graphs sum in different order
)


def all_laws(model: ModelProto, seed: int) -> None:
    """A random cut equals the masked original, has the predicted shapes and cost, and composes."""
    rng = np.random.default_rng(seed)
    analysis = analyze(load(model))
    plan = random_plan(analysis, rng)
    pruned, _ = assert_exact(analysis, plan, tolerance=TOLERANCE)
    assert_shapes_as_predicted(analysis, plan, pruned)
    assert_cost_as_predicted(analysis, plan, pruned)


def laws_of_a_second_cut(model: ModelProto, seed: int) -> None:
    """The analysis of a cut model finds the remaining causes; two cuts equal their union."""
    rng = np.random.default_rng(seed)
    analysis = analyze(load(model))
    assert to_bytes(cut(analysis, plan_of(analysis, {}))) == to_bytes(analysis.model)
    plan = no_axis_of_one(analysis, random_plan(analysis, rng, floor=2))
    pruned = cut(analysis, plan)
    again = assert_finds_the_rest(analysis, plan, pruned)
    assert_composes(analysis, plan, pruned, again, rng)


def unknown_op_freezes_only_more(model: ModelProto, seed: int) -> None:
    """Append a custom operator after any tensor."""
    analysis = analyze(load(model))
    before = live_positions(analysis)
    nodes = list(analysis.model.proto.graph.node)
    at = int(np.random.default_rng(seed).integers(len(nodes)))
    strange = analysis.model.edit()
    name = nodes[at].output[0]
    for node in strange.proto.graph.node[at + 1 :]:
        node.input[:] = [f"{n}_strange" if n == name else n for n in node.input]
    strange.proto.graph.node.insert(
        at + 1, helper.make_node("Mystery", [name], [f"{name}_strange"], domain="elsewhere")
    )
    kind = analysis.shapes.types[name]
    strange.proto.graph.value_info.append(onnx.ValueInfoProto(name=f"{name}_strange", type=kind))
    strange.proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    after = live_positions(analyze(strange))
    assert after <= before


@few
@given(graphs(), seeds)
def test_cut_equals_masked(model: ModelProto, seed: int) -> None:
    all_laws(model, seed)


@few
@given(graphs(), seeds)
def test_removed_branches(model: ModelProto, seed: int) -> None:
    """Some branches are removed, and channels of other groups are cut."""
    rng = np.random.default_rng(seed)
    analysis = analyze(load(model))
    blocks = [block for block in removable_branches(analysis).values() if rng.random() < 0.7]
    plan = plan_of(
        analysis,
        {**random_plan(analysis, rng).kept, **{group: () for block in blocks for group in block}},
    )
    pruned, _ = assert_exact(analysis, plan, tolerance=TOLERANCE)
    macs = counted_macs(onnx.load_from_string(to_bytes(pruned)))
    assert macs is None or macs == analysis.cost(plan.kept).macs


@few
@given(graphs(), seeds)
def test_second_cut(model: ModelProto, seed: int) -> None:
    laws_of_a_second_cut(model, seed)


@few
@given(graphs(), seeds)
def test_unknown_op(model: ModelProto, seed: int) -> None:
    unknown_op_freezes_only_more(model, seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(SLOW_PARTS))
def test_many(part: int) -> None:
    @many
    @given(graphs(most=14), seeds)
    def laws(model: ModelProto, number: int) -> None:
        all_laws(model, number)
        laws_of_a_second_cut(model, number)
        unknown_op_freezes_only_more(model, number)

    laws()
