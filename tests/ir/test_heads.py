"""Heads of outputs: what they are made of, and that joining them changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_text import net

from onnxprune.ir.compared import Compared
from onnxprune.ir.heads import BINARY, CLASSES, SCORES, VALUES, find_heads, tensors_of
from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session
from onnxprune.metrics.fidelity import Accumulator
from onnxprune.metrics.head_divergence import HeadDivergence, position_weights
from onnxprune.run.pipeline import optimize

INPUT = "float[N,3,8,8] x"
TRUNK = (
    "h=Conv<kernel_shape=[3,3],pads=[1,1,1,1],strides=[2,2]>(x,w);r1=Relu(h);"
    "h2=Conv(r1,w2);r=Relu(h2);"
)
WEIGHTS = (
    "float[12,3,3,3] w, float[12,12,1,1] w2, float[8,12,1,1] ub, float[2,12,1,1] uo, "
    "float[5,12,1,1] uc"
)
RAW = f"{TRUNK}b=Conv(r,ub);o=Conv(r,uo);c=Conv(r,uc);"
SATURATED = f"{RAW}so=Sigmoid(o);sc=Softmax<axis=1>(c)"
JOINED = f"{INPUT} | {WEIGHTS} | {SATURATED};y=Concat<axis=1>(b,so,sc) | float[N,15,4,4] y"
APART = (
    f"{INPUT} | {WEIGHTS} | {SATURATED} | float[N,8,4,4] b, float[N,2,4,4] so, float[N,5,4,4] sc"
)
# one tensor of all values of a cell, as exporters write it: boxes in pixels of a grid
CELLS = (
    f"{INPUT} | {WEIGHTS}, int64[3] flat={{0,15,16}}, int64[3] parts={{8,2,5}}, "
    "float[1,1,16] grid, float two={1000}, int64[1] zero={0}, int64[1] four={4}, int64[1] one={1}, "
    "int64[1] eight={8} | "
    f"{RAW}m=Concat<axis=1>(b,o,c);f=Reshape(m,flat);fb,fo,fc=Split<axis=1>(f,parts);"
    "p=Sigmoid(fo);q=Softmax<axis=1>(fc);xy=Slice(fb,zero,four,one);wh=Slice(fb,four,eight,one);"
    "e=Exp(wh);xs=Mul(xy,two);xg=Add(xs,grid);j=Concat<axis=1>(xg,e,p,q);"
    "y=Transpose<perm=[0,2,1]>(j) | float[N,16,15] y"
)
# a Sigmoid over all, of which parts go through arithmetic; distances to the sides of boxes
SLICED = (
    f"{INPUT} | {WEIGHTS}, float two={{2}}, int64[2] parts={{4,4}} | {TRUNK}b=Conv(r,ub);"
    "s=Sigmoid(b);xy,p=Split<axis=1>(s,parts);z=Mul(xy,two);y=Concat<axis=1>(z,p) | "
    "float[N,8,4,4] y"
)
SIDES = (
    f"{INPUT} | {WEIGHTS}, float[1,1,4,4] grid, int64[2] parts={{4,4}} | {TRUNK}b=Conv(r,ub);"
    "o=Conv(r,uo);s=Sigmoid(o);l,t=Split<axis=1>(b,parts);x1=Sub(grid,l);x2=Add(grid,t);"
    "c=Add(x1,x2);d=Sub(x2,x1);y=Concat<axis=1>(c,d,s) | float[N,10,4,4] y"
)
SCORED = (
    f"{INPUT} | {WEIGHTS} | {RAW}so=Sigmoid(o);p=Sigmoid(c);q=ReduceMax<axes=[1],keepdims=1>(so);"
    "y=Mul(q,p) | float[N,5,4,4] y"
)
GATE = f"{INPUT} | {WEIGHTS} | {TRUNK}b=Conv(r,ub);s=Sigmoid(b);y=Mul(b,s) | float[N,8,4,4] y"
CLASSIFIER = (
    f"{INPUT} | {WEIGHTS} | {TRUNK}g=GlobalAveragePool(r);f=Flatten(g);y=Softmax(f) | float[N,12] y"
)
LABELS = (
    f"{INPUT} | {WEIGHTS} | {TRUNK}g=GlobalAveragePool(r);f=Flatten(g);y=Sigmoid(f) | float[N,12] y"
)
DETECTOR = [("b", VALUES, "o"), ("o", BINARY, ""), ("c", CLASSES, "o")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (JOINED, DETECTOR),
        (APART, DETECTOR),
        (CELLS, DETECTOR),
        (SLICED, [("xy", VALUES, "p"), ("p", BINARY, "")]),
        (SIDES, [("b", VALUES, "o"), ("o", BINARY, "")]),
        (GATE, [("y", VALUES, "")]),
        (CLASSIFIER, [("y", SCORES, "")]),
        (LABELS, [("g", BINARY, "")]),
    ],
    ids="joined apart cells sliced sides gate classifier labels".split(),
)
def test_heads_are_found(text: str, expected: list[tuple[str, str, str]]) -> None:
    heads = find_heads(load(net(text)))
    assert [(h.tensor, h.kind, h.score.tensor if h.score else "") for h in heads] == expected


def with_weights(text: str) -> bytes:
    """Return a network with the weights of the first one."""
    model, first = net(text), net(JOINED)
    weights = {w.name: w for w in first.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(weights[tensor.name])
    return model.SerializeToString()


def test_joined_heads_are_pruned_as_heads_apart(tmp_path: Path) -> None:
    """Joining heads, and boxes a thousand times as large, change no plan and no figure."""
    values = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    data = str(tmp_path / "x.npz")
    np.savez(data, x=values)
    results = [
        optimize(with_weights(text), data=data, target="macs=60%", round_to=1, engine="none")
        for text in (APART, JOINED, CELLS)
    ]
    kept = [{n: list(k) for n, k in result.plan.kept.items()} for result in results]
    assert kept[0] and kept[0] == kept[1] == kept[2]
    apart, joined, cells = (result.report.fidelity for result in results)
    assert list(apart.heads) == list(joined.heads) == ["b", "o", "c"]
    assert [row["weights"] for row in joined.heads.values()] == ["o", "", "o"]
    for other in (joined, cells):
        assert other.relative_error == pytest.approx(apart.relative_error, rel=1e-3)
    # the squared error of the joined output is that of its largest part
    assert cells.outputs["y"]["relative_error"] != pytest.approx(apart.relative_error, rel=0.1)


def test_divergence_is_a_share_of_what_a_head_says() -> None:
    """A constant loses all; errors where nothing is detected hardly count."""
    model = load(net(JOINED))
    feeds = {"x": np.random.default_rng(1).standard_normal((64, 3, 8, 8)).astype(np.float32)}
    heads = find_heads(model)
    values = dict(Session(model, tensors_of(heads)).run(feeds))
    # few detections, in one corner
    values["o"] -= 8.0
    values["o"][:, :, 0, 0] += 12.0
    for head in heads:
        a = values[head.tensor]
        weights = position_weights(head, values)
        same, lost = HeadDivergence(head), HeadDivergence(head)
        same.update(a, a, weights)
        lost.update(a, np.zeros_like(a) + a.mean((0, 2, 3), keepdims=True), weights)
        assert same.result() == pytest.approx(0, abs=1e-9)
        assert 0.3 < lost.result() < 3
        if head.score is None:
            continue
        corner, rest = np.array(a), np.array(a)
        corner[:, :, 0, 0] += 1.0 + np.arange(a.shape[1])[:, None].T % 2
        rest[:, :, 1:, 1:] += 1.0 + (np.arange(a.shape[1]) % 2)[None, :, None, None]
        errors = []
        for changed in (corner, rest):
            divergence = HeadDivergence(head)
            divergence.update(a, changed, weights)
            errors.append(divergence.result())
        assert errors[0] > 2 * errors[1]


def test_walks_end_in_deep_and_repetitive_graphs() -> None:
    """A file can pass a tensor on very often, and join it with itself."""
    passes = ";".join(f"i{k + 1}=Identity(i{k})" for k in range(400))
    joins = ";".join(f"j{k + 1}=Concat<axis=1>(j{k},j{k})" for k in range(18))
    text = f"{INPUT} | {WEIGHTS} | {RAW}i0=Sigmoid(b);{passes};j0=Sigmoid(o);{joins};"
    text += "y=Identity(i400);z=Identity(j18) | float[N,8,4,4] y, float[N,m,4,4] z"
    heads = {head.tensor for head in find_heads(load(net(text)))}
    assert heads == {"y", "z"}


def test_outputs_that_are_boxes_have_no_figures_of_heads() -> None:
    text = (
        f"{INPUT} | {WEIGHTS}, int64[3] four={{0,32,4}}, int64[2] one={{0,32}} | {RAW}"
        "so=Sigmoid(o);boxes=Reshape(b,four);scores=Reshape(so,one);labels=Reshape(o,one) | "
        "float[N,32,4] boxes, float[N,32] scores, float[N,32] labels"
    )
    model = load(net(text))
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)}
    outputs, heads = Session(model).run(feeds), find_heads(model)
    sums = Accumulator(compared=Compared(("boxes", "scores", "labels")), heads=heads)
    values = outputs | Session(model, tensors_of(heads)).run(feeds)
    sums.update(values, values, feeds)
    assert not sums.result().heads and not sums.result().outputs
