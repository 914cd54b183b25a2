"""Shared weights are refitted to all their uses at once and remain stored once."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import net
from onnx import helper
from repair_reference import Repaired

from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session
from onnxprune.repair.tied import adjacent_order

SIAMESE = """float[N,5] x, float[N,5] z | float[5,12] w1, float[5,12] w2, float[12,7] w3, float[7] b
| a = MatMul(x, w1); c = MatMul(z, w2); d = MatMul(a, w3); e = Add(d, b);
f = MatMul(c, w3); g = Add(f, b); y = Concat<axis=1>(e, g)"""
OWN_BIASES = SIAMESE.replace("float[7] b", "float[7] b, float[7] b2").replace(
    "Add(f, b)", "Add(f, b2)"
)
PYRAMID = """float[N,3,8,8] x
| float[8,3,3,3] w1, float[8,8,3,3] w2, float[6,8,3,3] h1, float[6] b1, float[6,6,3,3] h2,
float[4,6,1,1] h3
| p = Conv<pads=[1,1,1,1]>(x, w1); p1 = Relu(p);
q = Conv<pads=[1,1,1,1],strides=[2,2]>(p1, w2); q1 = Relu(q);
a = Conv<pads=[1,1,1,1]>(p1, h1, b1); c = Relu(a); c2 = Conv<pads=[1,1,1,1]>(c, h2);
f = Conv(c2, h3); m = GlobalAveragePool(f);
d = Conv<pads=[1,1,1,1]>(q1, h1, b1); e = Relu(d); e2 = Conv<pads=[1,1,1,1]>(e, h2);
g = Conv(e2, h3); n = GlobalAveragePool(g); y = Concat<axis=1>(m, n)"""
SEQUENCE = """float[N,4] x | float[4,8] w1, float[8,8] w2, float[8,5] w3
| a = MatMul(x, w1); b = MatMul(a, w2); r = Relu(b); c = MatMul(r, w2); y = MatMul(c, w3)"""


@pytest.mark.parametrize("text", [SIAMESE, OWN_BIASES], ids=["one bias", "two biases"])
def test_weight_minimizes_the_error_of_both_uses(text: str) -> None:
    repaired = Repaired.of(text, samples=48, share=0.6)
    kept = repaired.plan.kept
    (group,) = [g for g in repaired.analysis.groups if g.size == 12]
    indices = list(kept[group.name])
    a, c, e, g = repaired.values(repaired.original, "a", "c", "e", "g")
    xs = [a[:, indices], c[:, indices]]
    # one bias: pooled means; two: each use is centered on its own
    pooled = [np.concatenate(xs)], [np.concatenate([e, g])]
    parts = pooled if text is SIAMESE else (xs, [e, g])
    prior = repaired.before.weights["w3"].array().astype(np.float64)
    xx, xy = np.zeros((len(indices),) * 2), np.zeros((len(indices), 7))
    for x, y in zip(*parts, strict=True):
        x, y = x.astype(np.float64), y.astype(np.float64)
        xx += (x - x.mean(0)).T @ (x - x.mean(0))
        xy += (x - x.mean(0)).T @ (y - y.mean(0))
    ridge = 1e-3 * np.trace(xx) / len(xx) * np.eye(len(xx))
    expected = np.linalg.solve(xx + ridge, xy + ridge @ prior)
    np.testing.assert_allclose(repaired.after.weights["w3"].array(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("text", [SIAMESE, OWN_BIASES, PYRAMID])
@pytest.mark.parametrize("held_out", [0, 8])
def test_shared_weights_remain_stored_once(text: str, held_out: int) -> None:
    repaired = Repaired.of(text, samples=64, held_out=held_out, passes=1)

    def stored(model):
        return {n: w.shape for n, w in model.weights.items() if len(w.shape) > 1}

    assert stored(repaired.before) == stored(repaired.after)
    nodes = [n.output[0] for n in repaired.before.proto.graph.node]
    assert [n.output[0] for n in repaired.after.proto.graph.node] == nodes


def test_refit_reduces_the_error_of_the_network() -> None:
    repaired = Repaired.of(PYRAMID, samples=64, passes=1)
    batches = list(repaired.data.batches(64))
    dense = Session(repaired.analysis.model).run(batches[0])["y"]

    def error(model) -> float:
        return float(np.square(Session(model).run(batches[0])["y"] - dense).sum())

    assert error(repaired.after) < 0.5 * error(repaired.before)


def test_weight_applied_twice_in_a_row_keeps_its_values() -> None:
    repaired = Repaired.of(SEQUENCE, samples=48)
    before, after = (m.weights["w2"].array() for m in (repaired.before, repaired.after))
    np.testing.assert_array_equal(before, after)


def test_order_brings_classes_together_where_possible() -> None:
    nodes = load(net(PYRAMID)).proto.graph.node
    outs = [n.output[0] for n in nodes]
    order = [outs[i] for i in adjacent_order(nodes, [["a", "d"], ["c2", "e2"], ["f", "g"]])]
    for pair in (("a", "d"), ("c2", "e2"), ("f", "g")):
        assert abs(order.index(pair[0]) - order.index(pair[1])) == 1
    for node in nodes:
        for name in node.input:
            if name in order:
                assert order.index(name) < order.index(node.output[0])


def test_order_gives_up_classes_that_depend_on_themselves_or_each_other() -> None:
    def chain(*pairs: tuple[str, str]):
        return [helper.make_node("Relu", [a], [b]) for a, b in pairs]

    row = chain(("x", "a"), ("a", "b"), ("b", "c"))
    assert adjacent_order(row, [["a", "c"]]) == [0, 1, 2]
    crossed = chain(("x", "a1"), ("a1", "b1"), ("z", "b2"), ("b2", "a2"))
    assert sorted(adjacent_order(crossed, [["a1", "a2"], ["b1", "b2"]])) == [0, 1, 2, 3]
