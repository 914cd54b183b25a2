"""Single-layer models for latency allocation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, shape_inference

from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions
from onnxprune.engines.cost.layers import (
    LatencyCache,
    LayerSpec,
    cache_key,
    layer_model,
    layer_spec,
    time_layer,
)
from onnxprune.engines.cpu import vector_channels
from onnxprune.errors import EngineError
from onnxprune.ir.io import load, to_bytes

SPECS = {
    "conv": LayerSpec(
        "Conv",
        (1, 8, 9, 9),
        (12, 8, 3, 3),
        (("kernel_shape", (3, 3)), ("pads", (1, 1, 1, 1))),
        True,
    ),
    "grouped": LayerSpec(
        "Conv", (1, 8, 9, 9), (12, 4, 3, 3), (("group", 2), ("kernel_shape", (3, 3)))
    ),
    "depthwise": LayerSpec(
        "Conv", (1, 8, 9, 9), (8, 1, 3, 3), (("group", 8), ("kernel_shape", (3, 3)))
    ),
    "transpose": LayerSpec(
        "ConvTranspose", (1, 8, 9, 9), (8, 6, 2, 2), (("strides", (2, 2)),), True
    ),
    "gemm": LayerSpec("Gemm", (1, 8), (8, 5), (), True),
    "gemm_transposed": LayerSpec("Gemm", (1, 8), (5, 8), (("transB", 1),), True),
    "matmul": LayerSpec("MatMul", (1, 7, 8), (8, 5)),
}


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=15, deadline=None)
@given(inputs=st.integers(1, 20), outputs=st.integers(1, 20))
def test_resized_layer_has_those_widths(name: str, inputs: int, outputs: int) -> None:
    spec = SPECS[name]
    if name == "depthwise":
        inputs = outputs = inputs + 1  # one channel of depthwise is an ordinary convolution
    if name == "grouped":
        inputs, outputs = 2 * inputs + 2, 2 * outputs
    resized = spec.resized(inputs, outputs)
    inferred = shape_inference.infer_shapes(_proto(resized), strict_mode=True, data_prop=True)
    shape = [d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim]
    channel = 1 if "Conv" in spec.op or spec.op == "Gemm" else -1
    assert shape[channel] == outputs
    assert resized.input[channel] == inputs
    assert (
        resized.resized(
            spec.input[channel],
            {"conv": 12, "grouped": 12, "depthwise": 8, "transpose": 6}.get(name, 5),
        )
        == spec
    )


def _proto(spec: LayerSpec):
    from onnx import ModelProto

    proto = ModelProto()
    proto.ParseFromString(to_bytes(layer_model(spec)))
    return proto


def test_groups_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(EngineError, match="2 groups"):
        SPECS["grouped"].resized(3, 4)


def test_spec_of_a_node() -> None:
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], auto_pad="NOTSET"
    )
    spec = layer_spec(node, (1, 8, 9, 9), (12, 8, 3, 3))
    assert (
        dict(spec.attributes)
        == {"auto_pad": "NOTSET", "kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
        and spec.bias
    )
    assert load(_proto(spec)).weights["b"].shape == (12,)


@pytest.mark.parametrize("name", SPECS)
def test_time_is_positive_and_comes_from_the_cache_the_second_time(
    name: str, tmp_path: Path
) -> None:
    engine, options = ENGINES.get("onnxruntime"), EngineOptions()
    first = time_layer(engine, SPECS[name], options, LatencyCache(tmp_path / "new"))
    assert first > 0
    assert time_layer(_Refuses(), SPECS[name], options, LatencyCache(tmp_path / "new")) == first


class _Refuses:
    """onnxruntime by name and version, whose compile fails the test."""

    name = "onnxruntime"
    install = ""

    def version(self) -> str:
        return ENGINES.get("onnxruntime").version()

    def compile(self, *_: object) -> None:
        raise AssertionError("measured again")


def test_a_key_differs_where_the_time_may() -> None:
    engine, spec = ENGINES.get("onnxruntime"), SPECS["conv"]
    keys = {
        cache_key(engine, s, o)
        for s in (spec, spec.resized(4, 12), dataclasses.replace(spec, bias=False))
        for o in (EngineOptions(), EngineOptions(threads=2), EngineOptions(level="off"))
    }
    assert len(keys) == 9


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 0, "times_ms": {"a": 1}}', '{"format": 1, "times_ms": [1]}'],
)
def test_an_unreadable_cache_counts_as_empty(content: str, tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text(content)
    cache = LatencyCache(tmp_path)
    assert cache.get("a") is None
    cache.put("a", 2.0)
    assert json.loads((tmp_path / "latency.json").read_text()) == {
        "format": 1,
        "times_ms": {"a": 2.0},
    }


def test_two_users_of_a_cache_keep_each_other_s_times(tmp_path: Path) -> None:
    one, two = LatencyCache(tmp_path), LatencyCache(tmp_path)
    one.put("a", 1.0)
    two.put("b", 2.0)
    merged = LatencyCache(tmp_path)
    assert (merged.get("a"), merged.get("b")) == (1.0, 2.0)


def test_weights_are_seeded() -> None:
    assert np.array_equal(
        layer_model(SPECS["conv"]).weights["w"].array(),
        layer_model(SPECS["conv"]).weights["w"].array(),
    )


FEWEST_PAIRS, MOST_PAIRS = 3, 20


@pytest.mark.slow
@pytest.mark.skipif(vector_channels() != 16, reason="the staircase of 16 belongs to AVX-512")
def test_the_staircase_of_onnxruntime_is_seen(tmp_path: Path) -> None:
    """An unaligned width costs twice the aligned one, an unblocked depthwise one far more."""
    spec = LayerSpec(
        "Conv",
        (1, 32, 28, 28),
        (32, 32, 3, 3),
        (("kernel_shape", (3, 3)), ("pads", (1, 1, 1, 1))),
        True,
    )
    depthwise = LayerSpec(
        "Conv",
        (1, 32, 28, 28),
        (32, 1, 3, 3),
        (("group", 32), ("kernel_shape", (3, 3)), ("pads", (1, 1, 1, 1))),
        True,
    )
    for layer, least in ((spec, 1.3), (depthwise, 2.0)):
        # alternating, and again on a busy machine: other work slows single measurements only
        odd, even = [], []
        for _ in range(MOST_PAIRS):
            for width, times in ((31, odd), (32, even)):
                resized = layer.resized(width, width)
                times.append(time_layer(ENGINES.get("onnxruntime"), resized, EngineOptions()))
            if len(odd) >= FEWEST_PAIRS and min(odd) > least * min(even):
                break
        assert min(odd) > least * min(even)
