"""Other libraries' graphs: nothing is lost on the way there and back, and changes prevail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import demo
from onnxprune.errors import ModelError
from onnxprune.ir.convert import (
    from_graphsurgeon,
    from_onnx_ir,
    to_graphsurgeon,
    to_onnx_ir,
    to_proto,
)
from onnxprune.ir.io import Model, digest, load
from onnxprune.ir.runtime import Session

FORMS = {
    "onnx_graphsurgeon": (to_graphsurgeon, from_graphsurgeon),
    "onnx_ir": (to_onnx_ir, from_onnx_ir),
}
TEXT = """
<
  ir_version: 10, opset_import: ["" : 18, "local" : 1], producer_name: "exporter",
  producer_version: "7", domain: "com.example", model_version: 42, doc_string: "a model"
>
graph (float[batch, 4] x, bool c) => (float[batch, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] b = {1, 2, 3},
 float[2] unused = {1, 2}>
{
  [multiply] h = MatMul (x, w)
  [choose] s = If (c) <
    then_branch = then_graph () => (float[batch, 3] t) { t = Add (h, b) },
    else_branch = else_graph () => (float[batch, 3] e) { e = Sub (h, b) }
  >
  [own] y = local.twice <alpha = 2.0> (s)
}
<domain: "local", opset_import: ["" : 18]>
twice <alpha> (a) => (r)
{
  k = Constant <value_float: float = @alpha> ()
  r = Mul (a, k)
}
"""


def rich() -> Model:
    """Return a model with everything that a file can say about itself."""
    proto = onnx.parser.parse_model(TEXT)
    graph = proto.graph
    graph.doc_string = "a graph"
    for message, value in ((proto, "m"), (graph, "g"), (graph.node[0], "n"), (graph.input[0], "i")):
        message.metadata_props.add(key="key", value=value)
    graph.node[0].doc_string = "a node"
    body = graph.node[1].attribute[0].g
    body.node[0].doc_string = "a node of a body"
    body.node[0].metadata_props.add(key="key", value="body")
    graph.initializer[0].doc_string = "a weight"
    graph.input[0].doc_string = "an input"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.value_info.add(name="h", doc_string="between").type.tensor_type.elem_type = 1
    annotation = graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b")
    proto.functions[0].doc_string = "a function"
    proto.functions[0].metadata_props.add(key="key", value="f")
    proto.functions[0].node[1].doc_string = "a node of a function"
    graph.node[0].attribute.append(  # of a kind that onnx-graphsurgeon skips
        helper.make_attribute("kind", helper.make_tensor_type_proto(TensorProto.FLOAT, [3]))
    )
    return load(proto)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> tuple[Callable[[Any], Any], Callable[..., Model]]:
    pytest.importorskip(request.param)
    return FORMS[request.param]


@pytest.mark.filterwarnings("ignore")
def test_nothing_is_lost(form: Any) -> None:
    there, back = form
    for model in (rich(), load(demo.files().model)):
        assert digest(back(there(model))) == digest(model)


@pytest.mark.slow
@pytest.mark.zoo
def test_trained_models_are_the_same_bytes(form: Any, zoo: Path) -> None:
    there, back = form
    for path in sorted(zoo.glob("*.onnx")):
        assert digest(back(there(path))) == digest(load(path)), path.name


def test_graphsurgeon_alone_loses_what_is_restored() -> None:
    """The restored fields are those that a plain round trip loses; else this test is of nothing."""
    surgeon = pytest.importorskip("onnx_graphsurgeon")
    proto = to_proto(rich())
    plain = surgeon.export_onnx(surgeon.import_onnx(proto), do_type_check=False)
    assert not plain.domain and not plain.metadata_props and not plain.doc_string
    assert not plain.graph.quantization_annotation and not plain.graph.node[0].doc_string
    assert "kind" not in [a.name for a in plain.graph.node[0].attribute]
    # of a graph from elsewhere, the model says what was lost
    restored = from_graphsurgeon(surgeon.import_onnx(proto), source=rich())
    assert digest(restored) == digest(rich())


def test_changes_of_graphsurgeon_prevail() -> None:
    pytest.importorskip("onnx_graphsurgeon")
    graph = to_graphsurgeon(rich())
    multiply, choose, _ = graph.nodes
    multiply.inputs[1].values = np.ones((4, 3), np.float32)
    choose.name = "renamed"
    graph.doc_string = "changed"
    body = choose.attrs["then_branch"]
    body.nodes[0].op = "Mul"
    # a weight that only bodies read
    body.nodes[0].inputs[1].values = np.full(3, 5, np.float32)
    model = from_graphsurgeon(graph)
    proto = model.proto
    assert [n.op_type for n in proto.graph.node] == ["MatMul", "If", "twice"]
    assert proto.graph.doc_string == "changed" and proto.graph.node[1].name == "renamed"
    assert (model.weights["w"].array() == 1).all() and (model.weights["b"].array() == 5).all()
    assert proto.graph.node[0].doc_string == "a node" and proto.domain == "com.example"
    branch = next(a.g for a in proto.graph.node[1].attribute if a.name == "then_branch")
    assert branch.node[0].op_type == "Mul" and branch.node[0].doc_string == "a node of a body"
    assert {"w", "b", "unused"} == set(model.weights)
    assert proto.graph.initializer[0].doc_string == "a weight"


def test_removed_nodes_and_annotations_stay_removed() -> None:
    pytest.importorskip("onnx_graphsurgeon")
    graph = to_graphsurgeon(rich())
    graph.outputs = [graph.nodes[0].outputs[0]]
    graph.nodes[0].outputs[0].name = "logits"
    del graph.nodes[1:]
    del graph.inputs[1]
    proto = from_graphsurgeon(graph).proto
    assert [o.name for o in proto.graph.output] == ["logits"] and len(proto.graph.node) == 1
    assert [i.name for i in proto.graph.input] == ["x"]
    assert proto.graph.node[0].doc_string == "a node"
    # of the tensor that has another name now
    assert not proto.graph.quantization_annotation


def test_changes_of_onnx_ir_prevail() -> None:
    ir = pytest.importorskip("onnx_ir")
    model = to_onnx_ir(rich())
    model.graph.node(0).name = "renamed"
    model.graph.initializers["w"].const_value = ir.tensor(np.ones((4, 3), np.float32), name="w")
    result = from_onnx_ir(model)
    assert result.proto.graph.node[0].name == "renamed"
    assert (result.weights["w"].array() == 1).all()
    assert result.proto.graph.node[0].doc_string == "a node"


def test_onnx_ir_keeps_external_data_in_their_files(tmp_path: Path) -> None:
    ir = pytest.importorskip("onnx_ir")
    source = load(demo.files().model)
    onnxprune.save(source, tmp_path / "m.onnx", external_data=True)
    model = load(ir.load(tmp_path / "m.onnx"))
    assert model.path is None
    for name, weight in source.weights.items():
        np.testing.assert_array_equal(model.weights[name].array(), weight.array())


@pytest.mark.parametrize("name", ["proto", *FORMS])
def test_runs_take_and_return_other_forms(name: str) -> None:
    """All forms of a model give the plan of its file."""
    if name != "proto":
        pytest.importorskip(name)
    there, back = FORMS.get(name, (to_proto, load))
    path = demo.files().model
    options: dict[str, Any] = {"target": "macs=60%", "engine": "none"}
    expected = onnxprune.optimize(path, **options)
    result = onnxprune.optimize(there(path), **options)
    assert result.plan == expected.plan
    assert digest(back(there(result.model))) == digest(expected.model)
    groups = onnxprune.analyze(there(path)).groups
    assert groups == onnxprune.analyze(path).groups


def test_surgery_between_analysis_and_cut() -> None:
    """Preprocessing that is folded into the graph: uint8 images instead of normalized floats."""
    surgeon = pytest.importorskip("onnx_graphsurgeon")
    graph = to_graphsurgeon(demo.files().model)
    (images,) = graph.inputs
    raw = surgeon.Variable("raw", np.uint8, images.shape)
    cast = surgeon.Variable("cast", np.float32)
    scale = surgeon.Constant("scale", np.array(1 / 255, np.float32))
    graph.inputs = [raw]
    graph.nodes.insert(0, surgeon.Node("Cast", "cast", {"to": np.float32}, [raw], [cast]))
    graph.nodes.insert(1, surgeon.Node("Mul", "scaled", None, [cast, scale], [images]))
    changed = from_graphsurgeon(graph)
    with np.load(demo.files().calibration) as file:
        pixels = np.uint8(file["images"][:8] * 255)
    expected = Session(load(demo.files().model)).run({"images": np.float32(pixels) / 255})
    outputs = Session(changed).run({"raw": pixels})
    np.testing.assert_allclose(outputs["logits"], expected["logits"], rtol=1e-4, atol=1e-4)
    result = onnxprune.optimize(changed, data=pixels, samples=8, fast=True, engine="none")
    assert result.report.after.macs < 0.51 * result.report.before.macs


def test_what_is_no_model_is_said_in_one_sentence() -> None:
    for value in (np.zeros(1000), 5, {"a": np.zeros(1000)}, None):
        with pytest.raises(ModelError, match="is not a model") as caught:
            load(value)  # type: ignore[arg-type]  # the fault under test
        assert len(str(caught.value)) < 200


def test_a_graph_that_cannot_be_written_is_said_in_one_sentence() -> None:
    surgeon = pytest.importorskip("onnx_graphsurgeon")
    graph = surgeon.Graph(nodes=[surgeon.Node("Relu", attrs={"x": object()})])
    with pytest.raises(ModelError, match="onnx-graphsurgeon cannot convert"):
        load(graph)


def test_unused_strings_and_small_values_are_kept() -> None:
    pytest.importorskip("onnx_graphsurgeon")
    proto: ModelProto = to_proto(rich())
    words = numpy_helper.from_array(np.array(["a", "b"], dtype=object), "words")
    proto.graph.initializer.insert(0, words)
    assert digest(from_graphsurgeon(to_graphsurgeon(proto))) == digest(load(proto))
