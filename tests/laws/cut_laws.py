"""Laws that hold for a random cut of any model; `LAWS` lists them with their random inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import onnx
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
from hypothesis import given
from hypothesis import strategies as st
from nested_graphs import KINDS, nest
from onnx import ModelProto, helper
from random_graphs import graphs

from onnxprune.analysis.blocks import removable_branches
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load, to_bytes
from onnxprune.surgery.cut import cut

Law = Callable[[ModelProto, int], None]

BLOCK_SHARE = 0.7  # of the removable branches, removed in a random plan
SEEDS = st.integers(0, 2**16)
MOST_BLOCKS = 14  # of a graph in a long search
# products of many tensors grow and cancel, and the two graphs sum in different order
TOLERANCE = 1e-4


@lru_cache(maxsize=2)  # of the model of an example, for all its laws, and of a nested form of it
def _analyze(serialized: bytes) -> Analysis:
    """Return the analysis of a model, which no law changes."""
    return analyze(load(serialized))


def analysis_of(model: ModelProto) -> Analysis:
    """Return the analysis of a model, the same one for each law."""
    return _analyze(model.SerializeToString())


def assert_cut_laws(model: ModelProto, seed: int) -> None:
    """Cut at random: equal to the masked original, shapes and cost as predicted."""
    rng = np.random.default_rng(seed)
    analysis = analysis_of(model)
    plan = random_plan(analysis, rng)
    pruned, _ = assert_exact(analysis, plan, tolerance=TOLERANCE)
    assert_shapes_as_predicted(analysis, plan, pruned)
    assert_cost_as_predicted(analysis, plan, pruned)


def assert_second_cut_laws(model: ModelProto, seed: int) -> None:
    """A second analysis finds the kept channels, and two cuts equal one cut of both plans."""
    rng = np.random.default_rng(seed)
    analysis = analysis_of(model)
    assert to_bytes(cut(analysis, plan_of(analysis, {}))) == to_bytes(analysis.model)
    plan = no_axis_of_one(analysis, random_plan(analysis, rng, floor=2))
    pruned = cut(analysis, plan)
    again = assert_finds_the_rest(analysis, plan, pruned)
    assert_composes(analysis, plan, pruned, again, rng)


def assert_block_laws(model: ModelProto, seed: int) -> None:
    """Remove some of the removable branches, and channels of other groups."""
    rng = np.random.default_rng(seed)
    analysis = analysis_of(model)
    blocks = [b for b in removable_branches(analysis).values() if rng.random() < BLOCK_SHARE]
    removed = {group: () for block in blocks for group in block}
    plan = plan_of(analysis, {**random_plan(analysis, rng).kept, **removed})
    pruned, _ = assert_exact(analysis, plan, tolerance=TOLERANCE)
    macs = counted_macs(onnx.load_from_string(to_bytes(pruned)))
    assert macs is None or macs == analysis.cost(plan.kept).macs


def assert_unknown_op_freezes_more(model: ModelProto, seed: int) -> None:
    """An op of an unknown domain after any tensor makes no further channel prunable."""
    analysis = analysis_of(model)
    before = live_positions(analysis)
    nodes = list(analysis.model.proto.graph.node)
    at = int(np.random.default_rng(seed).integers(len(nodes)))
    strange = analysis.model.edit()
    name = nodes[at].output[0]
    for node in strange.proto.graph.node[at + 1 :]:
        node.input[:] = [f"{n}_strange" if n == name else n for n in node.input]
    unknown = helper.make_node("Mystery", [name], [f"{name}_strange"], domain="elsewhere")
    strange.proto.graph.node.insert(at + 1, unknown)
    kind = analysis.shapes.types[name]
    strange.proto.graph.value_info.append(onnx.ValueInfoProto(name=f"{name}_strange", type=kind))
    strange.proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    after = live_positions(analyze(strange))
    assert after <= before


def assert_nested_laws(kind: str, model: ModelProto, seed: int) -> None:
    """The cut laws with a part of the graph in a body, and the same channels outside of it."""
    proto, outside = nest(model, kind, seed)
    assert_cut_laws(proto, seed)
    flat, nested = live_positions(analysis_of(model)), live_positions(analysis_of(proto))
    assert {p for p in flat if p[0] in outside} == {p for p in nested if p[0] in outside}


def nested(kind: str) -> Law:
    """Return the law of graphs with a body of a kind."""
    return lambda model, seed: assert_nested_laws(kind, model, seed)


LAWS: dict[str, Law] = {
    "cut": assert_cut_laws,
    "second cut": assert_second_cut_laws,
    "blocks": assert_block_laws,
    "unknown op": assert_unknown_op_freezes_more,
    **{f"nested in {kind}": nested(kind) for kind in KINDS},
}


def check(law: Law, most_blocks: int = 8) -> Callable[[], None]:
    """Return the property test of a law on random graphs, not yet with settings."""

    @given(graphs(most_blocks), SEEDS)
    def holds(model: ModelProto, number: int) -> None:
        law(model, number)

    return holds
