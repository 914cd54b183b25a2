"""Reading and writing preserve everything in a file; damaged files are rejected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_text import net
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import demo
from onnxprune.analysis.walk import analyze
from onnxprune.errors import ModelError, OnnxpruneError, OutputError
from onnxprune.ir.io import INLINE_BYTES, Model, digest, load, save, to_bytes
from onnxprune.ir.weights import from_array
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

TEXT = (
    "float[2,4,6,6] x | float[32,4,3,3] w1, float[32] b1, float[5,32,1,1] w2 | "
    "a = Conv(x, w1, b1); b = Relu(a); y = Conv(b, w2)"
)


def decorated() -> ModelProto:
    """A model with something in every field that tools tend to lose."""
    model = net(TEXT, opset=16)
    model.producer_name, model.producer_version, model.domain = "someone", "1.2", "org.example"
    model.model_version, model.doc_string, model.ir_version = 42, "what it is for", 9
    helper.set_model_props(model, {"names": "{0: 'cat', 1: 'dog'}", "stride": "32"})
    model.opset_import.append(helper.make_opsetid("org.example.ops", 3))
    model.graph.doc_string = "the graph"
    model.graph.node[0].doc_string = "a layer"
    model.graph.input[0].doc_string = "an image"
    model.graph.initializer[0].doc_string = "its filters"
    model.graph.metadata_props.add(key="scope", value="top")
    model.graph.node[0].metadata_props.add(key="from", value="layer1.conv")
    note = model.graph.quantization_annotation.add(tensor_name="a")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b1")
    model.training_info.add()
    return model


def carried(model: ModelProto) -> dict[str, object]:
    """All that is not weights and sizes."""
    node, graph = model.graph.node[0], model.graph
    return {
        "header": (
            model.producer_name,
            model.producer_version,
            model.domain,
            model.model_version,
            model.doc_string,
            model.ir_version,
        ),
        "props": {p.key: p.value for p in model.metadata_props},
        "opsets": [(o.domain, o.version) for o in model.opset_import],
        "graph": (graph.name, graph.doc_string, [(p.key, p.value) for p in graph.metadata_props]),
        "node": (node.name, node.doc_string, [(p.key, p.value) for p in node.metadata_props]),
        "input": graph.input[0].doc_string,
        "initializer": graph.initializer[0].doc_string,
        "annotation": [a.SerializeToString() for a in graph.quantization_annotation],
        "training": len(model.training_info),
        "names": ([i.name for i in graph.input], [o.name for o in graph.output]),
    }


def test_load_and_save_preserve_everything(tmp_path: Path) -> None:
    original = decorated()
    save(load(original), tmp_path / "m.onnx")
    again = onnx.load(tmp_path / "m.onnx")
    assert carried(again) == carried(original)
    for a, b in zip(original.graph.initializer, again.graph.initializer, strict=False):
        np.testing.assert_array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))
    assert original.graph.node == again.graph.node


def test_cut_preserves_everything() -> None:
    original = decorated()
    analysis = analyze(load(original))
    name = analysis.groups[0].name
    pruned = onnx.load_from_string(
        to_bytes(
            cut(analysis, Plan(analysis.digest, {name: (0, 3)}, {name: 32}, {}, analysis.options))
        )
    )
    assert carried(pruned) == carried(original)
    assert pruned.graph.initializer[0].dims[0] == 2


def test_the_same_bytes_twice() -> None:
    assert to_bytes(load(decorated())) == to_bytes(load(decorated()))
    assert digest(load(decorated())) == digest(load(to_bytes(load(decorated()))))


def test_weights_are_not_copied_before_use(tmp_path: Path) -> None:
    big = net(
        "float[1,1000] x | float[1000,3000] w1, float[3000,10] w2 | "
        "a = MatMul(x, w1); y = MatMul(a, w2)"
    )
    onnx.save(big, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    assert not model.proto.graph.initializer[0].raw_data
    code = (
        "import sys, tracemalloc; tracemalloc.start()\n"
        "from onnxprune.ir.io import load; m = load(sys.argv[1])\n"
        "sizes = [t.size for t in tracemalloc.take_snapshot().traces]; print(max(sizes))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.onnx")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(out.stdout) < 2**20 < 12_000_000


@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float16, np.float64, np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_],
)
def test_values_of_every_type(dtype: type) -> None:
    values = np.arange(600).reshape(20, 30).astype(dtype)
    for tensor in (
        numpy_helper.from_array(values, "w"),
        helper.make_tensor(
            "w",
            helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
            values.shape,
            values.ravel().tolist(),
        ),
    ):
        graph = helper.make_graph(
            [helper.make_node("Identity", ["w"], ["y"])],
            "g",
            [],
            [helper.make_tensor_value_info("y", tensor.data_type, values.shape)],
            [tensor],
        )
        model = load(helper.make_model(graph))
        np.testing.assert_array_equal(model.weights["w"].array(), values)
        np.testing.assert_array_equal(
            numpy_helper.to_array(onnx.load_from_string(to_bytes(model)).graph.initializer[0]),
            values,
        )


@pytest.mark.parametrize("name", ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4"])
def test_values_of_types_without_a_numpy_form(name: str) -> None:
    tensor = helper.make_tensor("w", getattr(TensorProto, name), (6, 4), np.arange(24) % 7)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", tensor.data_type, (6, 4))],
        [tensor],
    )
    model = load(helper.make_model(graph))
    expected = numpy_helper.to_array(tensor)
    np.testing.assert_array_equal(
        model.weights["w"].array().astype(np.float32), expected.astype(np.float32)
    )
    again = onnx.load_from_string(to_bytes(model)).graph.initializer[0]
    np.testing.assert_array_equal(
        numpy_helper.to_array(again).astype(np.float32), expected.astype(np.float32)
    )


def test_external_data_round_trip(tmp_path: Path) -> None:
    original = net(TEXT)
    save(load(original), tmp_path / "m.onnx", external_data=True)
    (data,) = tmp_path.glob("m.onnx.*.data")
    assert data.stat().st_size >= 4 * 32 * 4 * 9
    assert (
        max(
            len(t.raw_data)
            for t in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
        )
        <= INLINE_BYTES
    )
    by_onnx = onnx.load(tmp_path / "m.onnx")
    ours = load(tmp_path / "m.onnx")
    for tensor, first in zip(by_onnx.graph.initializer, original.graph.initializer, strict=False):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(first))
        np.testing.assert_array_equal(
            ours.weights[tensor.name].array(), numpy_helper.to_array(first)
        )


@pytest.mark.parametrize("external", [False, True])
def test_truncation_after_loading_is_reported(tmp_path: Path, external: bool) -> None:
    """In a process of its own: without the check, a signal ends it."""
    save(load(demo.files().model), tmp_path / "m.onnx", external_data=external)
    code = (
        "import os, sys; from onnxprune.ir.io import load\n"
        "model = load(sys.argv[1]); os.truncate(sys.argv[2], 10)\n"
        "try: print(sum(w.array().sum() for w in model.weights.values()))\n"
        "except Exception as problem: print(problem.code)"
    )
    (shortened,) = tmp_path.glob("m.onnx.*.data" if external else "m.onnx")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m.onnx", shortened],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "model-changed"), done.stderr


def test_external_data_of_onnx_is_read(tmp_path: Path) -> None:
    original = net(TEXT)
    onnx.save(
        original,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    ours = load(tmp_path / "m.onnx")
    for tensor in net(TEXT).graph.initializer:
        np.testing.assert_array_equal(
            ours.weights[tensor.name].array(), numpy_helper.to_array(tensor)
        )


def external(tmp_path: Path, **entries: str) -> Path:
    model = net(TEXT)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ({"location": "gone.bin"}, "external-data"),
        ({}, "external-data-outside"),
        ({"location": "../up.bin"}, "external-data-outside"),
        ({"location": "/etc/passwd"}, "external-data-outside"),
        ({"location": "w.bin", "offset": "many"}, "external-data"),
        ({"location": "w.bin", "offset": "-4"}, "external-data"),
        ({"location": "w.bin", "length": "999999999"}, "external-data"),
        ({"location": "w.bin", "length": "8"}, "model-truncated"),
    ],
)
def test_invalid_external_data_are_rejected(
    tmp_path: Path, entries: dict[str, str], code: str
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(4 * 32 * 4 * 9))
    (tmp_path.parent / "up.bin").write_bytes(bytes(4 * 32 * 4 * 9))
    with pytest.raises(ModelError) as caught:
        load(external(tmp_path, **entries))
    assert caught.value.code == code
    assert "\n" not in caught.value.message


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret").write_bytes(bytes(4 * 32 * 4 * 9))
    (tmp_path / "inner" / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="outside"):
        load(external(tmp_path / "inner", location="w.bin"))


def test_missing_and_empty_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    for path, code in (
        (tmp_path / "no.onnx", "model-unreadable"),
        (tmp_path / "empty.onnx", "model-empty"),
        (tmp_path, "model-unreadable"),
    ):
        with pytest.raises(ModelError) as caught:
            load(path)
        assert caught.value.code == code


def test_other_formats_are_rejected(tmp_path: Path) -> None:
    for data in (
        b"hello, this is text\n" * 40,
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        bytes(1000),
        b"PK\x03\x04" * 200,
    ):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(ModelError, match="not an ONNX model"):
            load(tmp_path / "x")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_rejected_or_analyzed(data: st.DataObject) -> None:
    """Truncated or changed anywhere, it is rejected by us, or analyzed."""
    blob = bytearray(WHOLE)
    if data.draw(st.booleans()):
        blob = blob[: data.draw(st.integers(1, len(blob) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        analyze(load(bytes(blob)))
    except OnnxpruneError as problem:
        assert problem.message


WHOLE = net(TEXT).SerializeToString()


def test_output_is_not_overwritten(tmp_path: Path) -> None:
    save(load(net(TEXT)), tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="--overwrite"):
        save(load(net(TEXT)), tmp_path / "m.onnx")
    save(load(net(TEXT)), tmp_path / "m.onnx", overwrite=True)
    with pytest.raises(OutputError, match="no/such"):
        save(load(net(TEXT)), tmp_path / "no/such/m.onnx")


def test_two_initializers_of_one_name() -> None:
    model = net(TEXT)
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(ModelError, match="two initializers"):
        load(model)


def test_edit_leaves_the_original_alone() -> None:
    model = load(net(TEXT))
    before = to_bytes(model)
    copy = model.edit()
    copy.proto.graph.node[0].name = "other"
    copy.weights["w2"] = from_array(np.zeros((5, 32, 1, 1), np.float32))
    assert to_bytes(model) == before
    assert isinstance(copy.freeze(), Model)


def test_a_frozen_model_does_not_change() -> None:
    copy = load(net(TEXT)).edit()
    weights = copy.weights
    frozen = copy.freeze()
    before = to_bytes(frozen)
    with pytest.raises(TypeError):
        frozen.weights["w2"] = weights["w1"]
    weights["w2"] = weights["w1"]
    assert to_bytes(frozen) == before
    with pytest.raises(AttributeError):
        _ = copy.proto
    assert to_bytes(load(frozen.edit())) == before
