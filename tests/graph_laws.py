"""Laws that hold for every model and every plan."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, shape_inference

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model, to_bytes
from onnxprune.ir.nodes import label
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import Verification, verify
from onnxprune.types import Plan

SEEN = 1e-4  # relative change of the output below which a plan proves nothing


def random_plan(analysis: Analysis, rng: np.random.Generator, floor: int = 1) -> Plan:
    """Return a plan that cuts at least one channel of every group of more than `floor`."""
    kept = {}
    for group in analysis.groups:
        if group.size > floor:
            count = int(rng.integers(floor, group.size))
            kept[group.name] = tuple(sorted(rng.choice(group.size, count, replace=False).tolist()))
    # an axis whose positions depend on several groups may lose all of them, which no cut accepts
    while tables := list(analysis.emptied_axes(kept)):
        del kept[next(n for n in kept if np.isin(analysis.causes[n], tables[0]).any())]
    return plan_of(analysis, kept)


def no_axis_of_one(analysis: Analysis, plan: Plan) -> Plan:
    """Return the plan without groups that would leave a single position on an axis.

    Such an axis is frozen in the analysis of the cut model.
    """
    kept = dict(plan.kept)
    axes = [
        a
        for t in (*analysis.record.tensors.values(), *analysis.record.uses)
        for a in t.axes
        if isinstance(a, np.ndarray)
    ]
    group_of = {c: name for name, causes in analysis.causes.items() for c in causes.tolist()}
    for ids in axes:
        if len(ids) > 1 and analysis.keep(ids, analysis.removed(kept)).sum() <= 1:
            for cause in set(analysis.axes.table(ids).ravel().tolist()) & group_of.keys():
                kept.pop(group_of[cause], None)
    return plan_of(analysis, kept)


def plan_of(analysis: Analysis, kept: Mapping[str, tuple[int, ...]]) -> Plan:
    """Return a plan that keeps the given channels and all of other groups."""
    return Plan(
        analysis.digest, dict(kept), {g: analysis.group(g).size for g in kept}, {}, analysis.options
    )


def assert_exact(
    analysis: Analysis, plan: Plan, tolerance: float | None = None
) -> tuple[Model, Verification]:
    """Check that the cut equals the masked original."""
    pruned = cut(analysis, plan)
    found = verify(analysis, plan, pruned, tolerance=tolerance)
    assert found.difference <= found.tolerance, (found, dict(plan.kept))
    return pruned, found


def assert_shapes_as_predicted(analysis: Analysis, plan: Plan, pruned: Model) -> None:
    """Check that onnx infers the kept length of every axis for the cut model."""
    removed = analysis.removed(plan.kept)
    inferred = shape_inference.infer_shapes(onnx.load_from_string(to_bytes(pruned))).graph
    found = {v.name: v.type.tensor_type.shape.dim for v in (*inferred.value_info, *inferred.output)}
    checked = 0
    for name, tensor in analysis.record.tensors.items():
        for i, ids in enumerate(tensor.axes):
            if (
                name in found
                and isinstance(ids, np.ndarray)
                and len(found[name]) == len(tensor.axes)
                and found[name][i].HasField("dim_value")
            ):
                assert found[name][i].dim_value == int(analysis.keep(ids, removed).sum()), (name, i)
                checked += 1
    assert checked or not analysis.groups


def assert_cost_as_predicted(analysis: Analysis, plan: Plan, pruned: Model) -> None:
    """Check the predicted parameters and MACs against those counted on the cut graph."""
    predicted = analysis.cost(plan.kept)
    proto = onnx.load_from_string(to_bytes(pruned))
    assert predicted.params == counted_params(proto)
    macs = counted_macs(proto)
    if macs is not None:
        assert predicted.macs == macs


Place = tuple[str, int, int, int]  # node, operand, axis, position


def footprints(
    analysis: Analysis, removed: np.ndarray | None = None
) -> dict[frozenset[Place], list[int]]:
    """Return the causes by where they are in the weights.

    Positions are counted among the kept ones.
    """
    gone = analysis.removed({}) if removed is None else removed
    found: dict[int, set[Place]] = {}
    for use in analysis.record.uses:
        for axis, ids in enumerate(use.axes):
            if not isinstance(ids, np.ndarray):
                continue
            keep = analysis.keep(ids, gone)
            for position, causes in enumerate(analysis.axes.table(ids)[keep]):
                for cause in set(causes.tolist()) - {analysis.axes.causes}:
                    found.setdefault(cause, set()).add(
                        (label(analysis.record.nodes[use.node]), use.slot, axis, position)
                    )
    by_places: dict[frozenset[Place], list[int]] = {}
    for cause, places in found.items():
        by_places.setdefault(frozenset(places), []).append(cause)
    return by_places


def assert_finds_the_rest(analysis: Analysis, plan: Plan, pruned: Model) -> Analysis:
    """Check that the analysis of the cut model has exactly the remaining causes."""
    again = analyze(pruned)
    expected, found = set(footprints(analysis, analysis.removed(plan.kept))), set(footprints(again))
    assert found == expected, (
        sorted(map(sorted, found - expected))[:3],
        sorted(map(sorted, expected - found))[:3],
    )
    return again


def assert_composes(
    analysis: Analysis, first: Plan, pruned: Model, again: Analysis, rng: np.random.Generator
) -> None:
    """Check that cutting A, then B, gives the nodes and values of cutting their union."""
    second = random_plan(again, rng)
    left = footprints(analysis, analysis.removed(first.kept))
    gone = analysis.removed(first.kept)
    also = again.removed(second.kept)
    for places, causes in footprints(again).items():
        gone[left[places]] |= also[causes].any()
    kept = {
        name: tuple(np.flatnonzero(~gone[causes]).tolist())
        for name, causes in analysis.causes.items()
        if gone[causes].any()
    }
    assert_same(cut(again, second), cut(analysis, plan_of(analysis, kept)))


def assert_same(a: Model, b: Model) -> None:
    """Check that two graphs are equal but for names of initializers and bounds of slices.

    Bounds may be beyond the end.
    """
    assert [n.name for n in a.proto.graph.node] == [n.name for n in b.proto.graph.node]
    for left, right in zip(a.proto.graph.node, b.proto.graph.node, strict=False):
        assert list(left.attribute) == list(right.attribute), left.name
        for p, q in (
            zip(left.input[:1], right.input[:1], strict=False)
            if left.op_type == "Slice"
            else zip(left.input, right.input, strict=False)
        ):
            if p in a.weights or q in b.weights:
                np.testing.assert_array_equal(a.weights[p].array(), b.weights[q].array(), left.name)
            else:
                assert p == q


def live_positions(analysis: Analysis) -> set[Place]:
    """Return every position in the weights that can be cut."""
    return {place for places in footprints(analysis) for place in places}


_FLOATS = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.BFLOAT16,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT4,
)


def counted_params(proto: ModelProto) -> int:
    """Count the elements of the weights; scalars are constants of formulas."""
    return sum(prod(t.dims) for t in proto.graph.initializer if t.data_type in _FLOATS and t.dims)


def counted_macs(proto: ModelProto) -> int | None:
    """Count multiply-accumulates by definition; None if an operator or a shape is unknown."""
    graph = shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {
        v.name: [
            d.dim_value if d.HasField("dim_value") else 0 for d in v.type.tensor_type.shape.dim
        ]
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes |= {t.name: list(t.dims) for t in graph.initializer}
    total = 0
    for node in graph.node:
        if (
            any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute)
            or node.op_type
            in (
                "ConvInteger",
                "QLinearConv",
                "QLinearMatMul",
                "MatMulInteger",
                "Einsum",
                "Attention",
                "LSTM",
                "GRU",
                "RNN",
                "DeformConv",
                "CausalConvWithState",
                "LinearAttention",
            )
            or node.domain
        ):
            return None
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        a, b, y = (shapes.get(n, [0]) for n in (node.input[0], node.input[1], node.output[0]))
        if 0 in (*a, *b, *y):
            return None
        if node.op_type == "Conv":
            total += prod(y) * prod(b[1:])
        elif node.op_type == "ConvTranspose":
            total += prod(a) * prod(b[1:])
        elif node.op_type == "Gemm":
            trans = next((x.i for x in node.attribute if x.name == "transA"), 0)
            total += prod(y) * a[0 if trans else 1]
        else:
            total += prod(y) * a[-1]
    return total
