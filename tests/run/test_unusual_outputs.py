"""Commands on models whose outputs are integers, strings, maps, sequences or chosen rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_text import net
from onnx import ModelProto, helper, numpy_helper

from onnxprune.cli import run
from onnxprune.engines.bench_warnings import difference
from onnxprune.ir.compared import rows_from_data
from onnxprune.ir.io import load
from onnxprune.ir.outputs import as_array
from onnxprune.surgery.compare import relative_difference

INPUT = "float[N,3,6,6] x"
WEIGHTS = "float[12,3,3,3] w, float[8,12,1,1] u"
HEAD = "h=Conv(x,w);r=Relu(h);m=Conv(r,u);"
SECOND = "float[2,16] a, float[16,3] b, float least={0.0}, int64[2] rows={-1,2}"
STAGE_TWO = (
    "q=Reshape(m,rows);top=ReduceMax<axes=[1],keepdims=0>(q);good=Greater(top,least);"
    "picked=Compress<axis=0>(q,good);d=MatMul(picked,a);e=Relu(d);y=MatMul(e,b)"
)


def with_map(model: ModelProto) -> ModelProto:
    """Add the output of a classifier that scikit-learn's converter writes: a map per row."""
    zipmap = helper.make_node(
        "ZipMap", ["y"], ["z"], domain="ai.onnx.ml", classlabels_int64s=list(range(8))
    )
    model.graph.node.append(zipmap)
    kind = helper.make_map_type_proto(
        onnx.TensorProto.INT64, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(kind)))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return model


def with_names(model: ModelProto) -> ModelProto:
    """Replace the index of the class by its name."""
    names = np.array([f"class{i}".encode() for i in range(8)], object)
    model.graph.initializer.append(numpy_helper.from_array(names, "names"))
    model.graph.node.append(helper.make_node("Gather", ["names", "y"], ["z"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.STRING, None))
    return model


POOLED = f"{INPUT} | {WEIGHTS} | {HEAD}p=ReduceMean<axes=[2,3],keepdims=0>(m);"
MODELS = {
    "integers": net(POOLED + "y=ArgMax<axis=1>(p) | int64[N,1] y"),
    "strings": with_names(net(POOLED + "y=ArgMax<axis=1,keepdims=0>(p) | int64[N] y")),
    "maps": with_map(net(POOLED + "y=Softmax<axis=1>(p)")),
    "sequence": net(POOLED + "y=SplitToSequence<axis=0>(p) | seq(float[]) y"),
    "second stage": net(f"{INPUT} | {WEIGHTS}, {SECOND} | {HEAD}{STAGE_TWO}"),
}
PRUNE = ["--target", "macs=70%", "--engine", "none"]


@pytest.mark.parametrize("name", MODELS)
def test_commands_end(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out, data = (str(tmp_path / f) for f in ("m.onnx", "out.onnx", "x.npz"))
    onnx.save(MODELS[name], model)
    rng = np.random.default_rng(0)
    np.savez(data, x=rng.standard_normal((40, 3, 6, 6)).astype(np.float32))
    calls = [
        ["optimize", model, "-o", out, "--data", data, *PRUNE],
        ["bench", model, out, "--engine", "onnxruntime", "--seconds", "0.01"],
        ["sensitivity", model, "-o", out + ".jsonl", "--data", data, "--rates", "0.5", "--no-time"],
    ]
    for call in calls:
        assert run(call) == 0, (call[0], capsys.readouterr().err)
    assert "ignore its times" not in capsys.readouterr().err


def test_rows_of_a_second_stage_do_not_correspond() -> None:
    model = load(MODELS["second stage"].SerializeToString())
    assert rows_from_data(model) == {"picked", "d", "e", "y"}
    assert rows_from_data(load(MODELS["integers"].SerializeToString())) == frozenset()


def test_values_of_maps_and_sequences_are_compared() -> None:
    maps = [{0: 0.25, 1: 0.75}, {0: 0.5, 1: 0.5}]
    ragged = [np.ones((2, 3)), np.zeros(4)]
    assert as_array(maps).tolist() == [0.25, 0.75, 0.5, 0.5] and as_array(ragged).size == 10
    near = [{0: 0.25, 1: 0.7}, {0: 0.5, 1: 0.5}]
    for compare in (relative_difference, lambda a, b: difference({"y": a}, {"y": b})):
        assert compare(maps, maps) == compare(ragged, ragged) == compare(None, None) == 0
        assert compare(near, maps) == pytest.approx(0.05 / 0.75)
        assert compare(maps[:1], maps) == compare(None, maps) == np.inf


def test_models_with_sequence_inputs_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{INPUT}, seq(float[N,8]) s | {WEIGHTS}, int64 at={{0}} | {HEAD}"
    model = net(text + "p=ReduceMean<axes=[2,3],keepdims=0>(m);e=SequenceAt(s,at);y=Add(p,e)")
    path = str(tmp_path / "m.onnx")
    onnx.save(model, path)
    for call in (
        ["optimize", path, "-o", str(tmp_path / "out.onnx")],
        ["bench", path, "--engine", "onnxruntime"],
        ["sensitivity", path, "-o", str(tmp_path / "s.jsonl")],
    ):
        assert run(call) in (1, 2), call
        error = capsys.readouterr().err
        assert "'s' is n" in error and "internal" not in error, call


def test_verify_names_an_output_that_became_a_sequence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, plan, pruned = (str(tmp_path / f) for f in ("m.onnx", "plan.json", "cut.onnx"))
    onnx.save(net(POOLED + "y=Identity(p) | float[N,8] y"), dense)
    assert run(["plan", dense, "-o", plan, "--criterion", "l2", *PRUNE[:2]]) == 0
    assert run(["cut", dense, plan, "-o", pruned]) == 0
    assert run(["verify", dense, pruned, "--plan", plan]) == 0
    model = onnx.load(pruned)
    last = next(n for n in model.graph.node if "y" in n.output)
    last.output[0] = "inner"
    model.graph.node.append(helper.make_node("SequenceConstruct", ["inner"], ["y"]))
    kind = helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, None)
    model.graph.output[0].CopyFrom(kind)
    onnx.save(model, pruned)
    capsys.readouterr()
    assert run(["verify", dense, pruned, "--plan", plan]) == 4
    assert "output 'y' of the cut model is a list" in capsys.readouterr().err
