"""onnxruntime's kernels are mapped to the nodes of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_nets import residual

from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions, LayerTime, random_feeds, static_inputs
from onnxprune.engines.kernels import CONTRACTIONS, interquartile_mean
from onnxprune.ir.io import Model, load


def profile(model: Model, level: str = "all") -> tuple[LayerTime, ...]:
    feeds = random_feeds(static_inputs(model, {}))
    with ENGINES.get("onnxruntime").compile(model, EngineOptions(level=level)) as compiled:
        return compiled.profile(feeds, 3)


@pytest.mark.parametrize("level", ["off", "basic", "extended", "all"])
def test_every_node_belongs_to_one_kernel(level: str) -> None:
    model = residual()
    nodes = [n for layer in profile(model, level) for n in layer.nodes]
    assert sorted(nodes) == sorted(n.name for n in model.proto.graph.node)


def test_fused_nodes_are_with_their_convolution() -> None:
    layers = {layer.key: set(layer.nodes) for layer in profile(residual()) if layer.key}
    assert layers["c0"] == {"n_c0", "n_b0", "n_r0"}
    assert layers["c1"] == {"n_c1", "n_r1"}
    assert layers["c2"] >= {"n_c2", "n_a2", "n_r2"}


def test_kernels_without_nodes_are_layout_changes() -> None:
    assert all(layer.op.startswith("Reorder") for layer in profile(residual()) if not layer.nodes)


def test_times_are_positive_and_plain_data() -> None:
    layers = profile(residual(), "all")
    assert (
        all(layer.time_ms >= 0 for layer in layers) and sum(layer.time_ms for layer in layers) > 0
    )
    assert layers[0].as_dict()["nodes"] == list(layers[0].nodes)


def test_middle_mean_ignores_outliers_and_is_finer_than_the_tick() -> None:
    assert interquartile_mean([1, 1, 2, 2, 2, 1, 1, 1000]) == pytest.approx(1.5)
    assert interquartile_mean([3.0]) == 3.0


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name",
    ["cifar10_mlp_resnet8", "cifar10_resnet20_bn", "vww_mobilenetv1_0.25", "coco_yolofastestv2_bn"],
)
def test_each_contraction_of_a_real_model_has_one_kernel(zoo: Path, name: str) -> None:
    model = load(zoo / f"{name}.onnx")
    expected = {node.output[0] for node in model.proto.graph.node if node.op_type in CONTRACTIONS}
    layers = profile(model)
    keys = [layer.key for layer in layers if layer.key in expected]
    assert sorted(keys) == sorted(expected)
    assert all(
        layer.op in ("Conv", "FusedConv", "Gemm", "MatMul", "FusedGemm")
        for layer in layers
        if layer.key in expected
    )
