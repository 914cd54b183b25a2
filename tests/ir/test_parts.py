"""Parts of models: what is cut out computes the same alone, and fits back when pruned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import demo
from onnxprune.cli import run
from onnxprune.errors import ModelError, UsageError, VerificationError
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model, digest, load
from onnxprune.ir.parts import extract, join
from onnxprune.ir.runtime import Session
from onnxprune.run.adapter import open_inputs
from onnxprune.run.part_check import check_part
from onnxprune.run.recipe import Recipe
from tests.graph_text import net

MODEL = demo.files().model
CHAIN = load(
    net(
        "float[n, 4] x | float[4, 6] a, float[6, 5] b, float[5, 4] c "
        "| h = MatMul(x, a); r = Relu(h); k = MatMul(r, b); s = Sigmoid(k); y = MatMul(s, c)"
    )
)
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def ends(model: Model) -> tuple[list[str], list[str]]:
    graph = model.proto.graph
    return [i.name for i in graph.input], [o.name for o in graph.output]


def cuts() -> list[tuple[str, str]]:
    """Return pairs (input, output) of the demo's graph: all single tensors that separate it."""
    graph = load(MODEL).proto.graph
    alive = [node.output[0] for node in graph.node if node.op_type in ("Relu", "Add")]
    return [(alive[i], alive[j]) for i, j in ((0, 2), (1, -1), (0, -1)) if alive[i] != alive[j]]


@pytest.mark.parametrize(("start", "end"), [("r", "s"), ("x", "k"), ("h", "y"), ("x", "y")])
def test_a_part_computes_what_it_computes_inside(start: str, end: str) -> None:
    part = extract(CHAIN, [start], [end])
    assert ends(part) == ([start], [end])
    values = {"x": X, **Session(CHAIN, ["h", "r", "k", "s", "y"], optimize=False).run({"x": X})}
    np.testing.assert_allclose(
        Session(part).run({start: values[start]})[end], values[end], rtol=1e-6, atol=1e-6
    )
    # weights of other nodes are not taken along
    used = {name for node in part.proto.graph.node for name in node.input}
    assert set(part.weights) == used & set(CHAIN.weights)


@pytest.mark.parametrize(("start", "end"), [("r", "s"), ("x", "k"), ("h", "y")])
def test_an_unchanged_part_fits_back(start: str, end: str) -> None:
    joined = join(CHAIN, extract(CHAIN, [start], [end]))
    assert [n.op_type for n in joined.proto.graph.node] == [
        n.op_type for n in CHAIN.proto.graph.node
    ]
    np.testing.assert_array_equal(
        Session(joined).run({"x": X})["y"], Session(CHAIN).run({"x": X})["y"]
    )
    assert set(joined.weights) == set(CHAIN.weights)


def test_a_pruned_part_computes_the_same_inside() -> None:
    part = extract(CHAIN, ["x"], ["s"])
    small = onnxprune.optimize(part, ratio=0.5, round_to=1, engine="none").model
    joined = join(CHAIN, small)
    # the hidden axis of length 6 is inside, that of length 5 is the part's output
    assert joined.weights["a"].shape[1] < 6 and joined.weights["c"].shape == (5, 4)
    inside = Session(joined, ["s"]).run({"x": X})["s"]
    np.testing.assert_allclose(inside, Session(small).run({"x": X})["s"], rtol=1e-6)
    assert joined.proto.graph.name == CHAIN.proto.graph.name


def test_names_that_the_model_uses_are_changed_in_the_part() -> None:
    part = extract(CHAIN, ["r"], ["s"]).edit()
    node = part.proto.graph.node
    # the part's own tensor has the name of one that the model computes outside
    node[0].output[0] = node[1].input[0] = "h"
    joined = join(CHAIN, part.freeze())
    outputs = [name for n in joined.proto.graph.node for name in n.output]
    assert len(outputs) == len(set(outputs)) and "h_1" in outputs
    onnx.checker.check_model(onnxprune.to_proto(joined))
    np.testing.assert_array_equal(
        Session(joined).run({"x": X})["y"], Session(CHAIN).run({"x": X})["y"]
    )


def test_tensors_of_the_old_part_that_others_read_remain() -> None:
    model = load(
        net(
            "float[n, 4] x | float[4, 4] a, float[4, 4] b "
            "| h = MatMul(x, a); k = MatMul(h, b); y = Add(k, h)"
        )
    )
    part = extract(model, ["x"], ["k"])
    joined = join(model, part)
    # h is computed once in the part and once for the sum outside
    assert [n.op_type for n in joined.proto.graph.node].count("MatMul") == 3
    np.testing.assert_allclose(
        Session(joined).run({"x": X})["y"], Session(model).run({"x": X})["y"], rtol=1e-6
    )


def test_metadata_of_what_remains_are_kept() -> None:
    proto = onnxprune.to_proto(MODEL)
    proto.metadata_props.add(key="names", value="0,1")
    proto.graph.node[0].doc_string = "first"
    annotation = proto.graph.quantization_annotation.add()
    annotation.tensor_name = proto.graph.node[-1].output[0]
    part = extract(proto, outputs=[proto.graph.node[0].output[0]])
    assert part.proto.metadata_props == proto.metadata_props
    assert part.proto.graph.node[0].doc_string == "first"
    assert not part.proto.graph.quantization_annotation
    whole = extract(proto)
    assert digest(whole) == digest(load(proto))


def test_types_of_new_ends_are_declared() -> None:
    start, end = cuts()[0]
    part = extract(MODEL, [start], [end])
    shapes = infer(part)
    assert shapes.dtype(start) == onnx.TensorProto.FLOAT and len(shapes.shape(end) or ()) == 4


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([], ["lgoits"], "unknown tensor 'lgoits'; did you mean 'logits'?"),
        (["logits"], ["logits"], "no node is between"),
        (["images", "logits"], ["logits"], "no node is between"),
        (["r"], ["r", "y"], ""),
    ],
)
def test_faults_of_ends(inputs: list[str], outputs: list[str], message: str) -> None:
    if not message:
        # an output that is also an input is passed on
        assert ends(extract(CHAIN, inputs, outputs)) == (["r"], ["r", "y"])
        return
    with pytest.raises(UsageError) as caught:
        extract(MODEL, inputs, outputs)
    assert message in str(caught.value) and len(str(caught.value)) < 250


def test_faults_of_parts() -> None:
    part = extract(CHAIN, ["r"], ["s"])
    renamed = part.edit()
    renamed.proto.graph.input[0].name = renamed.proto.graph.node[0].input[0] = "q"
    with pytest.raises(ModelError, match="unknown tensor 'q'"):
        join(CHAIN, renamed.freeze())
    wide = extract(MODEL)
    with pytest.raises(ModelError, match="does not fit"):
        join(CHAIN, wide)
    other = part.edit()
    other.proto.opset_import[0].version = 13
    with pytest.raises(ModelError, match="version 13 of operator set 'ai.onnx'"):
        join(CHAIN, other.freeze())
    short = part.edit()
    short.proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    with pytest.raises(ModelError, match=r"float nx3 in the part and float nx5 in the model"):
        join(CHAIN, short.freeze())


def test_commands_cut_out_prune_and_join(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, end = cuts()[-1]
    part, small, joined = (str(tmp_path / n) for n in ("part.onnx", "small.onnx", "joined.onnx"))
    data = ["--data", str(demo.files().calibration), "--samples", "64"]
    saved = str(tmp_path / "part.npz")
    ends_of_part = ["--inputs", start, "--outputs", end, "--save-inputs", saved, "-o", part]
    assert run(["extract", str(MODEL), *ends_of_part, *data, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["inputs"], said["outputs"], said["saved_samples"]) == ([start], [end], 64)
    with np.load(saved) as file:
        assert file[start].shape[0] == 64
    fast = ["--fast", "--engine", "none", "--target", "macs=60%"]
    assert run(["optimize", part, "--data", saved, "-o", small, *fast]) == 0
    capsys.readouterr()
    assert run(["join", str(MODEL), small, "-o", joined, *data, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["difference"] < 1e-5 and said["samples"] == 16
    assert said["bytes"][1] < 0.9 * said["bytes"][0]
    with np.load(demo.files().evaluation) as file:
        images, labels = file["images"], file["labels"]
    accuracy = [
        np.mean(Session(load(p)).run({"images": images})["logits"].argmax(1) == labels)
        for p in (MODEL, joined)
    ]
    assert accuracy[1] > accuracy[0] - 0.03
    # the control: in the original, the nodes at the part's place compute something else
    recipe = Recipe(samples=16)
    with pytest.raises(VerificationError, match="differ by"):
        check_part(load(MODEL), load(small), open_inputs(load(MODEL), recipe), recipe)
    missing, other = str(tmp_path / "missing.onnx"), str(tmp_path / "other.onnx")
    assert run(["join", str(MODEL), missing, "-o", other]) == 1
    assert run(["extract", str(MODEL), "--outputs", "nothing", "-o", other]) == 2
    assert run(["join", str(MODEL), small, "-o", small, "--overwrite"]) == 2
