"""Runs on models whose outputs cannot be compared: rows chosen by the data, no floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_text import net
from onnx import ModelProto

from onnxprune.ir.compared import Compared, tensors_to_compare
from onnxprune.ir.heads import find_heads
from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session
from onnxprune.run.pipeline import optimize
from onnxprune.search.sensitivity import HeadLosses
from onnxprune.statistics.gradients import default_losses

SAMPLES, TRUNK = 48, "h=Conv<kernel_shape=[3,3],strides=[2,2]>(x,w);r=Relu(h);"
INPUT = "float[N,3,9,9] x"
WEIGHTS = "float[16,3,3,3] w, float[8,16,1,1] u"
HEAD = TRUNK + "m=Conv(r,u);s=Sigmoid(m);"
NMS = net(
    f"{INPUT} | {WEIGHTS}, int64[3] to={{0,8,16}}, int64[1] most={{9}}, float iou={{0.9}}, "
    "float least={0.5}, int64[2] at={0,2} | "
    f"{HEAD}f=Reshape(s,to);b0,scores=Split<axis=1>(f);boxes=Transpose<perm=[0,2,1]>(b0);"
    "picked=NonMaxSuppression(boxes,scores,most,iou,least);i=Gather<axis=1>(picked,at);"
    "det=GatherND(boxes,i) | float[k,4] det, int64[k,3] picked"
)
NONZERO = net(
    f"{INPUT} | {WEIGHTS}, float least={{0.5}} | {HEAD}g=Greater(s,least);z=NonZero(g);"
    "t=Transpose(z);y=GatherND(s,t)"
)
COMPRESS = net(
    f"{INPUT} | {WEIGHTS}, float least={{0.5}}, int64[1] flat={{-1}} | {HEAD}v=Reshape(s,flat);"
    "g=Greater(v,least);y=Compress(v,g)"
)
TOPK = net(
    f"{INPUT} | {WEIGHTS}, int64[3] to={{0,8,16}}, int64[1] k={{5}} | {HEAD}f=Reshape(m,to);"
    "top,i=TopK<axis=2>(f,k);e=Sigmoid(f);y=GatherElements<axis=2>(e,i)"
)
EXPERTS = net(
    f"{INPUT} | {WEIGHTS}, int64[3] to={{0,8,16}}, int64[1] k={{5}}, float[5,4] d | "
    f"{HEAD}f=Reshape(m,to);top,i=TopK<axis=2>(f,k);c=GatherElements<axis=2>(f,i);y=MatMul(c,d)"
)
MASK = net(
    f"{INPUT}, bool[M] mask | {WEIGHTS} | {HEAD}z=NonZero(mask);t=Transpose(z);y=GatherND(s,t)"
)
ARGMAX = net(
    f"{INPUT} | {WEIGHTS} | {HEAD}y=ArgMax<axis=1>(s) | int64[N,1,4,4] y",
)
BOOL = net(f"{INPUT} | {WEIGHTS}, float a={{0.5}} | {HEAD}y=Greater(s,a) | bool[N,8,4,4] y")
SCALAR = net(f"{INPUT} | {WEIGHTS} | {HEAD}y=ReduceMean<keepdims=0>(s) | float y")
ROWS = {"nms": NMS, "nonzero": NONZERO, "compress": COMPRESS, "topk": TOPK}
SEQUENCE = net(f"{INPUT} | {WEIGHTS} | {HEAD}y=SequenceConstruct(s,m) | seq(float[N,8,4,4]) y")
OTHERS = {"integer": ARGMAX, "bool": BOOL, "scalar": SCALAR, "sequence": SEQUENCE}


@pytest.fixture
def data(tmp_path: Path) -> str:
    values = np.random.default_rng(0).standard_normal((SAMPLES, 3, 9, 9)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=values)
    return str(tmp_path / "data.npz")


@pytest.mark.parametrize("options", [{"target": ["macs=60%"]}, {"max_divergence": 0.6}])
@pytest.mark.parametrize("kind", [*ROWS, *OTHERS])
def test_run_compares_in_front_and_warns(kind: str, options: dict, data: str) -> None:
    model = {**ROWS, **OTHERS}[kind]
    result = optimize(model.SerializeToString(), data=data, engine="none", batch_size=8, **options)
    figures = result.report.fidelity
    assert figures.relative_error is not None and 0 < figures.relative_error < 1
    said = [w for w in figures.warnings if "compared in front instead" in w]
    assert len(said) == (0 if kind == "scalar" else 1)


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("nms", ("boxes", "scores")),
        ("nonzero", ("s",)),
        ("compress", ("v",)),
        ("topk", ("f", "e")),
        ("integer", ("y", "s")),
        ("bool", ("y", "s")),
        ("scalar", ("y",)),
        ("sequence", ("m", "s")),
    ],
)
def test_tensors_in_front_replace_outputs(kind: str, tensors: tuple[str, ...]) -> None:
    model = load({**ROWS, **OTHERS}[kind])
    compared = tensors_to_compare(model)
    assert set(tensors) <= set(compared.tensors)
    heads = find_heads(model)
    assert {loss.head for loss in default_losses(model)} <= {head.tensor for head in heads}
    assert {head.output for head in heads} <= set(compared.tensors)
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 3, 9, 9)).astype(np.float32)}
    values = Session(model, list(compared.tensors)).run(feeds)
    assert HeadLosses([values]).batch(0, values)


@pytest.mark.parametrize("model", [EXPERTS, MASK], ids=["experts", "mask"])
def test_outputs_whose_rows_pruning_cannot_change_are_compared(model: ModelProto) -> None:
    assert tensors_to_compare(load(model)) == Compared(("y",))


def test_chosen_integers_beside_floats_are_skipped_as_other_integers() -> None:
    model = net(
        f"{INPUT} | {WEIGHTS}, float a={{0.5}} | {HEAD}g=Greater(s,a);z=NonZero(g) | "
        "float[N,8,4,4] s, int64[4,k] z"
    )
    assert tensors_to_compare(load(model)) == Compared(("s", "z"))


def test_rows_chosen_before_a_position_are_equal() -> None:
    model = load(NONZERO)
    names = [node.op_type for node in model.proto.graph.node]
    assert tensors_to_compare(model, names.index("NonZero") + 1) == Compared(("y",))


def test_sequence_is_compared_in_front() -> None:
    compared = tensors_to_compare(load(SEQUENCE))
    assert compared.tensors == ("m", "s")
    assert compared.warnings == (
        "output 'y': it is no tensor; compared in front instead: 'm', 's'",
    )
