"""Bias correction and re-estimated statistics against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import net
from onnx import NodeProto, helper
from repair_reference import Repaired, by_channel, initializer, node_of

from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import synthetic
from onnxprune.errors import DataError, UsageError
from onnxprune.ir.io import load
from onnxprune.ir.nodes import label
from onnxprune.ir.runtime import Session
from onnxprune.repair import REPAIRS
from onnxprune.run.adapter import input_types
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

SINGLE = 1e-5  # of the largest value

CONVOLUTIONS = {
    "pointwise": "float[5,8,1,1] w2, float[5] b2 | {} y = Conv(r, w2, b2)",
    "without bias": "float[5,8,3,3] w2 | {} y = Conv(r, w2)",
    "strided": "float[5,8,3,3] w2, float[5] b2 | {} y = Conv<strides=[2,1]>(r, w2, b2)",
    "dilated": "float[5,8,2,3] w2, float[5] b2 | {} y = Conv<dilations=[2,1]>(r, w2, b2)",
    "grouped": "float[6,4,3,3] w2, float[6] b2 | {} y = Conv<group=2>(r, w2, b2)",
    "depthwise": (
        "float[8,1,3,3] wd, float[5,8,1,1] w2 | {} d = Conv<group=8>(r, wd); y = Conv(d, w2)"
    ),
    "transposed": "float[8,5,2,2] w2, float[5] b2 | {} y = ConvTranspose<strides=[2,2]>(r, w2, b2)",
    "transposed, grouped": "float[8,3,4,2] w2 | {} y = ConvTranspose<group=2,strides=[2,1]>(r, w2)",
}
PRODUCTS = {
    "gemm": (
        "float[n,6] x | float[12,6] w1, float[12] b1, float[12,7] w2, float[7] b2 | "
        "a = Gemm<transB=1>(x, w1, b1); r = Relu(a); y = Gemm<alpha=0.5,beta=2.0>(r, w2, b2)"
    ),
    "product": (
        "float[n,5,6] x | float[6,12] w1, float[12,7] w2 | a = MatMul(x, w1); r = Relu(a); "
        "y = MatMul(r, w2)"
    ),
    "product and sum": (
        "float[n,5,6] x | float[6,12] w1, float[12,7] w2, float[7] b2 | a = MatMul(x, w1); "
        "r = Relu(a); o = MatMul(r, w2); y = Add(o, b2)"
    ),
    "shared bias": (
        "float[n,4,6,6] x | float[8,4,1,1] w1, float[8,8,1,1] w2, float[8,8,1,1] w3, "
        "float[8] b | a = Conv(x, w1); r = Relu(a); c = Conv(r, w2, b); d = Conv(r, w3, b); "
        "y = Concat<axis=1>(c, d)"
    ),
}


def conv(ending: str) -> str:
    weights, _, nodes = ending.partition("|")
    return (
        f"float[n,4,9,8] x | float[8,4,3,3] w1, float[8] b1, {weights} | "
        f"{nodes.format('a = Conv(x, w1, b1); r = Relu(a);')}"
    )


def response_inside(node: NodeProto, weight: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the (outputs,) response to a constant input, away from borders.

    Mean over one period of the strides.
    """
    x = np.broadcast_to(mean.reshape(1, -1, 1, 1), (1, len(mean), 14, 14)).astype(np.float32)
    plain = NodeProto()
    plain.CopyFrom(node)
    del plain.input[:], plain.output[:]
    plain.input.extend(["x", "w"])
    plain.output.append("y")
    infos = [helper.make_tensor_value_info(n, 1, v.shape) for n, v in (("x", x), ("w", weight))]
    graph = helper.make_graph([plain], "inside", infos, [helper.make_empty_tensor_value_info("y")])
    model = load(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    y = Session(model).run({"x": x, "w": weight.astype(np.float32)})["y"]
    first = [s // 2 - s // 2 % 2 for s in y.shape[2:]]
    return np.asarray(
        y[0, :, first[0] : first[0] + 2, first[1] : first[1] + 2].astype(np.float64).mean((1, 2))
    )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_bias_gains_the_mean_contribution_of_removed_channels(name: str) -> None:
    repaired = Repaired.of(conv(CONVOLUTIONS[name]), "bias")
    node = node_of(repaired.original, "y")
    lost = np.setdiff1d(np.arange(8), repaired.kept_of(node.input[0], 1))
    mean = by_channel(repaired.values(repaired.original, node.input[0])[0], node).mean(1)
    removed = np.zeros(8)
    removed[lost] = mean[lost]
    gained = response_inside(node, initializer(repaired.original, "w2"), removed)
    after = node_of(repaired.after, "y")
    before = initializer(repaired.original, "b2") if "b2" in repaired.original.weights else 0.0
    np.testing.assert_allclose(
        initializer(repaired.after, after.input[2]) - before,
        gained,
        atol=SINGLE * np.abs(gained).max(),
    )
    for weight in ("w1", "w2"):
        np.testing.assert_array_equal(
            initializer(
                repaired.after, node_of(repaired.after, "a" if weight == "w1" else "y").input[1]
            ),
            initializer(repaired.before, weight),
        )


@pytest.mark.parametrize("name", [*PRODUCTS, "pointwise"])
def test_outputs_keep_their_mean(name: str) -> None:
    """Exactly, if every output reads one position."""
    repaired = Repaired.of(PRODUCTS[name] if name in PRODUCTS else conv(CONVOLUTIONS[name]), "bias")
    axis = 1 if name in ("shared bias", "pointwise") else -1
    original, before, after = (
        np.moveaxis(repaired.values(m, "y")[0], axis, 0)
        .reshape(repaired.values(m, "y")[0].shape[axis], -1)
        .mean(1)
        for m in (repaired.original, repaired.before, repaired.after)
    )
    np.testing.assert_allclose(after, original, atol=SINGLE * np.abs(original).max())
    assert np.abs(before - original).max() > 100 * np.abs(after - original).max()


def test_names_of_inserted_nodes_are_unique() -> None:
    """Some nodes already have the names of the new Add and its MatMul, which must be unique."""
    proto = net(
        PRODUCTS["product"].replace(
            "y = MatMul(r, w2)", "o = MatMul(r, w2); s = Relu(o); y = Neg(s)"
        )
    )
    proto.graph.node[3].name, proto.graph.node[4].name = "o", "o_bias"
    analysis = analyze(load(proto))
    (group,) = analysis.groups
    plan = Plan(analysis.digest, {group.name: tuple(range(5))}, {group.name: group.size})
    context = Context(
        analysis, synthetic(input_types(analysis.model), samples=16, seed=1), batch_size=16
    )
    repaired = REPAIRS.get("bias")(analysis, plan, cut(analysis, plan), context)
    assert (
        len(repaired.proto.graph.node) == 6
        and len({label(n) for n in repaired.proto.graph.node}) == 6
    )
    Session(repaired)


def test_none_changes_nothing() -> None:
    repaired = Repaired.of(conv(CONVOLUTIONS["pointwise"]), "none")
    assert repaired.after is repaired.before


NORMALIZED = (
    "float[n,4,8,8] x | float[8,4,3,3] w1, float[8] g1, float[8] o1, float[8] m, float[8] v, "
    "float[8,8,3,3] w2, float[8] g2, float[8] o2, float[5,8,1,1] w3 |"
    "a = Conv(x, w1); b = BatchNormalization(a, g1, o1, m, v); r = Relu(b); c = Conv(r, w2); "
    "d = BatchNormalization<epsilon=0.001>(c, g2, o2, m, v); s = Relu(d); y = Conv(s, w3)"
)


def test_running_statistics_are_those_of_the_pruned_network() -> None:
    """In graph order; nodes that share statistics get their own."""
    repaired = Repaired.of(NORMALIZED, "batchnorm")
    for out, fed in (("b", "a"), ("d", "c")):
        node = node_of(repaired.after, out)
        x = by_channel(repaired.values(repaired.after, fed)[0], node_of(repaired.after, fed))
        np.testing.assert_allclose(
            initializer(repaired.after, node.input[3]), x.mean(1), atol=SINGLE * np.abs(x).max()
        )
        np.testing.assert_allclose(initializer(repaired.after, node.input[4]), x.var(1), rtol=1e-4)
        y = by_channel(repaired.values(repaired.after, out)[0], node_of(repaired.after, fed))
        np.testing.assert_allclose(y.mean(1), initializer(repaired.after, node.input[2]), atol=1e-4)
        for slot in (1, 2):
            np.testing.assert_array_equal(
                initializer(repaired.after, node.input[slot]),
                initializer(repaired.before, node_of(repaired.before, out).input[slot]),
            )


def test_statistics_do_not_depend_on_batches() -> None:
    repaired = Repaired.of(NORMALIZED, "batchnorm", samples=10)
    once = REPAIRS.get("batchnorm")(
        repaired.analysis,
        repaired.plan,
        repaired.before,
        Context(repaired.analysis, repaired.data, batch_size=3),
    )
    for name in repaired.after.weights:
        np.testing.assert_allclose(
            initializer(once, name), initializer(repaired.after, name), rtol=1e-4, atol=1e-6
        )


def test_errors() -> None:
    analysis = analyze(load(net(conv(CONVOLUTIONS["pointwise"]))))
    plan = Plan(analysis.digest, {}, {}, {}, analysis.options)
    for repair in ("bias", "batchnorm", "least-squares"):
        with pytest.raises(DataError, match="calibration data"):
            REPAIRS.get(repair)(analysis, plan, cut(analysis, plan), Context(analysis))
    with pytest.raises(UsageError, match="folded"):
        Repaired.of(conv(CONVOLUTIONS["pointwise"]), "batchnorm")
