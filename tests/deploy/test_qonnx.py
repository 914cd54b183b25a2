"""The quantized copy for FINN, and bundles of graphs that are quantized already."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import stubs
from onnx import ModelProto, NodeProto, helper

from onnxprune.deploy.bundle import check
from onnxprune.deploy.handoff import TARGETS, handoff
from onnxprune.deploy.prepare import prepare
from onnxprune.deploy.targets.qonnx import add_quantizers, is_qonnx
from onnxprune.errors import DataError, UsageError
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.runtime import Session

FINN = TARGETS.get("finn")
AGREES = {8: 0.05, 4: 0.5}  # of the largest output: 4 bits keep 15 levels, in each of three layers


def standard(model: Model) -> Model:
    """Replace every Quant by the arithmetic that QONNX defines, so that onnxruntime runs it."""
    proto = ModelProto.FromString(to_bytes(model))
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        if node.op_type != "Quant":
            nodes.append(node)
            continue
        source, scale, _, _ = node.input
        at = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        bits = int(model.weights[node.input[3]].array())
        top = 2 ** (bits - 1) - 1 if at["signed"] else 2**bits - 1
        name = node.output[0]
        for bound, value in (("low", -top if at["signed"] else 0), ("high", top)):
            proto.graph.initializer.append(
                helper.make_tensor(f"{name}.{bound}", 1, [], [float(value)])
            )
        nodes += [
            helper.make_node("Div", [source, scale], [f"{name}.0"]),
            helper.make_node("Round", [f"{name}.0"], [f"{name}.1"]),
            helper.make_node("Clip", [f"{name}.1", f"{name}.low", f"{name}.high"], [f"{name}.2"]),
            helper.make_node("Mul", [f"{name}.2", scale], [name]),
        ]
    del proto.graph.node[:], proto.opset_import[1:]
    proto.graph.node.extend(nodes)
    return load(proto)


@pytest.mark.parametrize("bits", AGREES)
def test_the_quantized_copy_computes_nearly_the_same(bits: int) -> None:
    source = prepare(stubs.convnet(16), "m", FINN)
    images = np.random.default_rng(1).random((8, 1, 8, 8), np.float32)
    copy = add_quantizers(source, {"images": images}, bits, bits)
    assert is_qonnx(copy) and not is_qonnx(source.model)
    original, quantized = Session(source.model), Session(standard(copy))
    for image in images:
        a, b = (session.run({"images": image[None]})["logits"] for session in (original, quantized))
        assert 0 < np.abs(a - b).max() <= AGREES[bits] * np.abs(a).max()


def test_every_layer_input_and_activation_is_quantized() -> None:
    copy = add_quantizers(prepare(stubs.convnet(8), "m", FINN), None, 3, 5)
    bits = {
        n.output[0]: int(copy.weights[n.input[3]].array())
        for n in copy.proto.graph.node
        if n.op_type == "Quant"
    }
    assert bits == {
        "images.rounded": 8,
        "w1.rounded": 3,
        "w2.rounded": 3,
        "f_mean.rounded": 3,
        "w3.rounded": 3,
        "b": 5,
        "e": 5,
    }
    order = [o for n in copy.proto.graph.node for o in n.output]
    computed = set(copy.weights) | {"images"}
    for node in copy.proto.graph.node:
        assert set(node.input) <= computed
        computed |= set(node.output)
    assert len(order) == len(set(order))


def test_a_bundle_of_a_quantized_graph_has_a_folding_and_no_expected_outputs(
    tmp_path: Path,
) -> None:
    plain = stubs.convnet(16)
    quantized = add_quantizers(prepare(plain, "m", FINN), None, 4, 4)
    bundle = handoff(quantized, None, "finn", tmp_path / "quantized")
    handoff(plain, None, "finn", tmp_path / "plain")
    assert [c.text for c in bundle.checks["original"] if "Quant" in c.text] == [
        "onnxruntime does not implement Quant: the bundle has no expected outputs to compare with"
    ]
    assert (
        not (tmp_path / "quantized" / "expected_original.npz").exists()
        and not (tmp_path / "quantized" / "models" / "original.qonnx.onnx").exists()
    )
    read = [
        json.loads((tmp_path / name / "folding_original.json").read_text())
        for name in ("quantized", "plain")
    ]
    assert read[0] == read[1] and {"MVAU_hls_0", "MVAU_hls_1", "MVAU_hls_2"} <= set(read[0])
    assert (
        load(tmp_path / "plain" / "models" / "original.qonnx.onnx").proto.opset_import[1].domain
        == "qonnx.custom_op.general"
    )


def test_poolings_count_as_sliding_windows_and_the_style_is_pinned(tmp_path: Path) -> None:
    handoff(stubs.convnet(16), None, "finn", tmp_path / "b", options={"style": "rtl"})
    folding = json.loads((tmp_path / "b" / "folding_original.json").read_text())
    windows = [name for name in folding if name.startswith("ConvolutionInputGenerator")]
    assert [name[-1] for name in windows] == ["0", "2", "3"], (
        "1 is the window of the pooling, 3 that of the global average"
    )
    styles = json.loads((tmp_path / "b" / "specialize_layers_config.json").read_text())
    assert styles["Defaults"]["preferred_impl_style"] == ["rtl", ["MVAU", "VVAU"]]
    assert (
        json.loads((tmp_path / "b" / "dataflow_build_config.json").read_text())[
            "standalone_thresholds"
        ]
        is True
    )


def test_bits_and_samples_that_do_not_fit_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="weight-bits='1'"):
        handoff(stubs.convnet(8), None, "finn", tmp_path / "b", options={"weight-bits": "1"})
    with pytest.raises(DataError, match="images"):
        handoff(
            stubs.convnet(8),
            None,
            "finn",
            tmp_path / "b",
            samples={"x": np.zeros((1, 1, 8, 8), np.float32)},
        )


def test_checks_of_a_quantized_graph_are_those_of_the_float_graph() -> None:
    source = prepare(stubs.convnet(13), "m", FINN)
    quantized = prepare(add_quantizers(source, None, 4, 4), "m", FINN)
    assert not quantized.notes
    assert [c.text for c in check(quantized, FINN) if c.op] == [
        c.text for c in check(source, FINN) if c.op
    ]
