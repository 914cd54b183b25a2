"""Computed arrays: against SCALE-Sim's figures, against counting, and over widths."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.engines import ENGINES
from onnxprune.engines.base import Engine, EngineOptions
from onnxprune.engines.cost.contractions import Contraction, contractions
from onnxprune.engines.cost.systolic import (
    PRESETS,
    MacArray,
    compute_cycles,
    estimate,
    estimate_layer,
    preset,
    square_array,
)
from onnxprune.errors import UsageError
from onnxprune.ir.io import Model, load

SCALE_SIM_CYCLES = {
    16: 63_130,
    8: 23_614,
}  # SCALE-Sim 3.0.0, weight stationary, 16x16, ResNet-8 (CIFAR) by base width
SIZES = st.integers(1, 70)


def resnet8(width: int) -> Model:
    """The ResNet-8 of MLPerf Tiny: 3 stages of one residual block, 1x1 shortcuts, 32x32 inputs."""
    nodes, weights = [], []

    def conv(source: str, name: str, cin: int, cout: int, kernel: int, stride: int) -> str:
        weights.append(
            numpy_helper.from_array(np.zeros((cout, cin, kernel, kernel), np.float32), name + ".w")
        )
        pad = kernel // 2
        nodes.append(
            helper.make_node(
                "Conv", [source, name + ".w"], [name], name, strides=[stride] * 2, pads=[pad] * 4
            )
        )
        return name

    x = conv("x", "stem", 3, width, 3, 1)
    for stage, (cin, cout) in enumerate(
        [(width, width), (width, 2 * width), (2 * width, 4 * width)]
    ):
        stride = 1 if stage == 0 else 2
        y = conv(conv(x, f"{stage}.a", cin, cout, 3, stride), f"{stage}.b", cout, cout, 3, 1)
        shortcut = x if stage == 0 else conv(x, f"{stage}.s", cin, cout, 1, stride)
        nodes.append(helper.make_node("Add", [y, shortcut], [f"{stage}.out"]))
        x = f"{stage}.out"
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
    ]
    weights.append(numpy_helper.from_array(np.zeros((4 * width, 10), np.float32), "fc.w"))
    nodes.append(helper.make_node("Gemm", ["f", "fc.w"], ["y"], "fc"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [value("y", TensorProto.FLOAT, None)],
        weights,
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


@pytest.mark.parametrize("width", SCALE_SIM_CYCLES)
def test_equals_scale_sim_to_its_one_cycle_a_layer(width: int) -> None:
    result = estimate(resnet8(width), preset("systolic16"))
    assert len(result.layers) == 10
    assert result.compute_cycles - len(result.layers) == SCALE_SIM_CYCLES[width]


def folded(array: MacArray, layer: Contraction) -> int:
    """The same by walking the folds one by one: load R rows, stream m, drain the diagonals."""
    total = 0
    for _ in range(layer.groups):
        for _ in range(0, layer.k, array.rows):
            for _ in range(0, layer.n, array.columns):
                load_weights, fill_rows, drain_columns = (
                    array.rows,
                    array.rows - 1,
                    array.columns - 1,
                )
                total += load_weights + fill_rows + layer.m + drain_columns
    return total


@given(SIZES, SIZES, SIZES, st.integers(1, 4), st.integers(1, 20), st.integers(1, 20))
def test_closed_form_equals_walking_the_folds(
    m: int, k: int, n: int, groups: int, rows: int, columns: int
) -> None:
    array, layer = MacArray("a", rows, columns), Contraction("l", "Gemm", m, k, n, groups)
    assert compute_cycles(array, layer) == folded(array, layer)


@given(st.sampled_from(sorted(PRESETS)), SIZES, SIZES, SIZES, st.sampled_from([1, 9]))
def test_never_faster_than_the_peak_and_never_slower_for_less(
    name: str, m: int, channels: int, n: int, taps: int
) -> None:
    array, layer = (
        PRESETS[name],
        Contraction("l", "Conv", m, channels * taps, n, 1, taps, m, n, m * n),
    )
    result = estimate_layer(array, layer)
    assert 0 < result.utilization <= 1
    smaller = dataclasses.replace(layer, n=max(1, n - 1))
    assert compute_cycles(array, smaller) <= result.compute_cycles


def test_utilization_is_full_on_a_multiple_of_the_tile_and_drops_above() -> None:
    array = preset("dpu-b4096")
    on, above = (Contraction("l", "Conv", 64, 9 * 16, n, 1, 9) for n in (32, 33))
    assert estimate_layer(array, on).utilization == 1.0
    assert compute_cycles(array, above) == 1.5 * compute_cycles(array, on)


# Vela 5.2.0, ethos-u55-128: NPU cycles of the convolutions of ResNet-8 by base width
VELA_CYCLES = {
    16: (14752, 25715, 25715, 13680, 19796, 4416, 18396, 20192, 2688),
    8: (8010, 7420, 7420, 4064, 7268, 2240, 4384, 5792, 1976),
}


@pytest.mark.parametrize("width", VELA_CYCLES)
def test_ethos_is_a_bound_near_vela(width: int) -> None:
    result = estimate(resnet8(width), preset("ethos-u55-128"))
    modeled = [layer.compute_cycles for layer in result.layers if layer.op == "Conv"]
    assert all(ours <= theirs for ours, theirs in zip(modeled, VELA_CYCLES[width], strict=False))
    assert sum(modeled) >= 0.75 * sum(VELA_CYCLES[width])


def test_memory_roof_is_met_by_a_matrix_vector_product() -> None:
    layer = estimate_layer(
        preset("gemmini"), Contraction("fc", "Gemm", 1, 1024, 1024, 1, 1, 1024, 1024 * 1024, 1024)
    )
    assert layer.traffic_bytes == 1024 * 1024 + 2048
    assert layer.memory_cycles == layer.traffic_bytes / 16
    assert layer.bound == ("memory" if layer.memory_cycles > layer.compute_cycles else "compute")
    wide = estimate_layer(
        dataclasses.replace(preset("gemmini"), bandwidth_bytes=1.0),
        Contraction("fc", "Gemm", 1, 1024, 1024, 1, 1, 1024, 1 << 20, 1024),
    )
    assert wide.bound == "memory" and wide.cycles == wide.memory_cycles


TEXT = """
<ir_version: 8, opset_import: ["" : 13]>
g (float[1,8,10,10] x) => (float[1,5,20,20] y)
<float[8,1,3,3] dw, float[12,4,3,3] gw, float[12,5,2,2] tw>
{ a = Conv<group=8, pads=[1,1,1,1]>(x, dw)  b = Conv<group=2, pads=[1,1,1,1]>(a, gw)
  y = ConvTranspose<strides=[2,2]>(b, tw) }
"""


def with_weights(text: str) -> Model:
    """A parsed graph whose graph inputs beyond the first are zero initializers."""
    proto = parser.parse_model(text)
    for value in list(proto.graph.value_info):
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        proto.graph.initializer.append(
            numpy_helper.from_array(np.zeros(dims, np.float32), value.name)
        )
    del proto.graph.value_info[:]
    return load(proto)


def test_depthwise_grouped_and_transposed_convolutions_count_their_macs() -> None:
    depthwise, grouped, transposed = contractions(with_weights(TEXT)).layers
    assert depthwise.depthwise and not grouped.depthwise
    assert depthwise.macs == 8 * 9 * 100
    assert grouped.macs == 12 * 4 * 9 * 100
    assert transposed.macs == 12 * 5 * 4 * 100


def test_matmul_of_two_activations_is_one_product_a_head() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 13]> '
        "g (float[1,3,7,16] q, float[1,3,16,7] k) => (float[1,3,7,7] y) { y = MatMul(q, k) }"
    )
    (layer,) = contractions(load(parser.parse_model(text))).layers
    assert (layer.groups, layer.m, layer.k, layer.n) == (3, 7, 16, 7)


def test_free_axes_need_a_shape() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 13]> '
        "g (float[n,s,16] x) => (float[n,s,4] y) <float[16,4] w> { y = MatMul(x, w) }"
    )
    with pytest.raises(UsageError, match="input 'x' is declared"):
        contractions(with_weights(text))
    (layer,) = contractions(with_weights(text), {"x": (2, 5, 16)}).layers
    assert (layer.groups, layer.m) == (1, 10)
    with pytest.raises(UsageError, match="'z'"):
        contractions(with_weights(text), {"z": (1,)})


def test_unknown_arrays_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="dpu-b4096"):
        preset("dpu-b4069")
    with pytest.raises(UsageError, match="positive"):
        square_array(0)


def test_every_preset_is_an_engine() -> None:
    for name in PRESETS:
        engine = ENGINES.get(name)
        assert engine.name == name and engine.available() is None
        assert isinstance(engine, Engine)


def test_engine_returns_the_estimate_and_the_outputs_of_the_reference() -> None:
    model = resnet8(8)
    compiled = ENGINES.get("systolic16").compile(model, EngineOptions())
    expected = estimate(model, preset("systolic16"))
    assert compiled.sample({}, 3) == [expected.latency_ms] * 3
    assert sum(layer.time_ms for layer in compiled.profile({}, 1)) == pytest.approx(
        expected.latency_ms
    )
    feeds = {"x": np.ones((1, 3, 32, 32), np.float32)}
    assert compiled.run(feeds)["y"].shape == (1, 10)


def test_size_clock_and_bus_are_parameters_of_the_name() -> None:
    array = ENGINES.get("systolic24x32-500mhz-8b").array
    assert (array.rows, array.columns, array.clock_mhz, array.bandwidth_bytes, array.multiple) == (
        24,
        32,
        500.0,
        8.0,
        32,
    )
    slower, wider = ENGINES.get("dpu-b4096-150mhz").array, ENGINES.get("gemmini-4b").array
    assert (
        dataclasses.replace(slower, name="dpu-b4096", clock_mhz=300.0) == PRESETS["dpu-b4096"]
        and slower.clock_mhz == 150
    )
    assert (
        dataclasses.replace(wider, name="gemmini", bandwidth_bytes=16.0) == PRESETS["gemmini"]
        and wider.bandwidth_bytes == 4
    )
    assert ENGINES.get("systolic20").array == dataclasses.replace(
        square_array(20), name="systolic20"
    )
    model = resnet8(16)
    fast, slow = (
        ENGINES.get(name).compile(model, EngineOptions()).sample({}, 1)[0]
        for name in ("systolic16", "systolic16-500mhz")
    )
    assert slow == 2 * fast
    for wrong in ("systolic", "systolic16x", "systolic16-8x", "dpu-b99"):
        with pytest.raises(UsageError, match="unknown engine"):
            ENGINES.get(wrong)
