"""Compatibility checks of the targets, folding, reuse factors, and prepared models."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import stubs
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from onnxprune.deploy.bundle import Check, check
from onnxprune.deploy.handoff import TARGETS, handoff
from onnxprune.deploy.prepare import make_explicit, prepare
from onnxprune.deploy.targets.finn import divisors, folding
from onnxprune.deploy.targets.hls4ml import UNROLLED_WEIGHTS, choose_reuse, parse_synthesis
from onnxprune.deploy.targets.vela import parse_summary
from onnxprune.errors import DataError, UsageError
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.runtime import Session
from onnxprune.ir.weights import from_array

WIDTHS = st.integers(1, 96)


def graph(body: str, weights: str, opset: int = 13) -> Model:
    """Return a graph x (1, 12, 16, 16) -> y with seeded random weights."""
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> '
        f"g (float[1,12,16,16] x) => (float y) <{weights}> {{ {body} }}"
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    generator = np.random.default_rng(0)
    for value in list(proto.graph.value_info):
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        proto.graph.initializer.append(
            numpy_helper.from_array(generator.standard_normal(dims).astype(np.float32), value.name)
        )
    del proto.graph.value_info[:]
    return load(proto)


def checks_of(model: Model, target: str) -> dict[tuple[str, str], str]:
    """Return (op, severity) -> sentence."""
    checks: tuple[Check, ...] = check(prepare(model, "m", TARGETS.get(target)), TARGETS.get(target))
    return {(c.op, c.severity): c.text for c in checks}


def test_vitis_ai_activations() -> None:
    body = (
        "a = Conv(x, w) b = LeakyRelu<alpha=0.1015625>(a) c = LeakyRelu<alpha=0.2>(b) "
        "d = Clip(c, l, h) y = Selu(d)"
    )
    model = graph(body, "float[32,12,3,3] w, float l, float h")
    checks = checks_of(model, "vitis-ai")
    assert ("Conv", "slow") not in checks
    assert "26/256" in checks["LeakyRelu", "note"] and "0.2" in checks["LeakyRelu", "unsupported"]
    assert ("Clip", "unsupported") in checks and "Selu" in checks["Selu", "fallback"]


def test_dpu_and_gemmini_support_relu6() -> None:
    model = graph("a = Conv(x, w) y = Clip(a, l, h)", "float[16,12,3,3] w, float l, float h")
    edited = model.edit()
    bounds = {"l": np.float32(0), "h": np.float32(6)}
    for tensor in edited.proto.graph.initializer:
        if tensor.name in bounds:
            tensor.CopyFrom(numpy_helper.from_array(np.array(bounds[tensor.name]), tensor.name))
    proto = edited.proto
    for tensor in proto.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(model.weights["w"].array(), "w"))
    model = load(proto)
    assert not [
        k
        for k in (*checks_of(model, "vitis-ai"), *checks_of(model, "gemmini"))
        if k[1] in ("unsupported", "fallback")
    ]
    assert ("Clip", "unsupported") in checks_of(model, "hls4ml")


def test_nngen_supports_no_groups_and_no_uneven_pads() -> None:
    checks = checks_of(graph("y = Conv<group=4>(x, w)", "float[8,3,3,3] w"), "nngen")
    assert "groups" in checks["Conv", "unsupported"]
    assert (
        "pads"
        in checks_of(graph("y = Conv<pads=[0,0,1,1]>(x, v)", "float[8,12,3,3] v"), "nngen")[
            "Conv", "unsupported"
        ]
    )


def test_finn_needs_quantizers_and_widths_with_divisors() -> None:
    checks = checks_of(graph("y = Conv(x, w)", "float[13,12,3,3] w"), "finn")
    assert "no Quant nodes" in checks["", "note"]
    assert "13 output channels fold by 1, 13 only" in checks["Conv", "slow"]
    assert ("Conv", "slow") not in checks_of(graph("y = Conv(x, w)", "float[12,12,3,3] w"), "finn")


def test_every_target_supports_a_plain_network() -> None:
    for name in TARGETS:
        target = TARGETS.get(name)
        counts = Counter(
            c.severity for c in check(prepare(stubs.convnet(16, 16), "m", target), target) if c.op
        )
        assert counts["unsupported"] == 0, name


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_prepared_models_compute_the_same(name: str) -> None:
    source = graph(
        "a = Conv(x, w) b = GlobalAveragePool(a) c = Flatten(b) y = Gemm(c, f)",
        "float[8,12,3,3] w, float[8,5] f",
        opset=13,
    )
    prepared = prepare(source, "m", TARGETS.get(name))
    feeds = {"x": np.random.default_rng(1).random((1, 12, 16, 16), np.float32)}
    assert np.allclose(
        Session(source).run(feeds)["y"],
        Session(prepared.model).run(feeds)["y"],
        rtol=1e-5,
        atol=1e-5,
    )
    gemm = next(n for n in prepared.nodes() if n.op == "Gemm")
    assert gemm.get("transB") == 1 and gemm.channels == (8, 5)
    pool = next(n for n in prepared.nodes() if n.proto.output[0] == "b")
    assert pool.op == {"nngen": "AveragePool", "hls4ml": "Conv", "finn": "Conv"}.get(
        name, "GlobalAveragePool"
    )


def test_a_weight_shared_by_two_gemms_is_transposed_for_one() -> None:
    model = graph(
        "a = GlobalAveragePool(x) b = Flatten(a) c = Gemm(b, f) y = Gemm<transB=1>(c, f)",
        "float[12,12] f",
    )
    feeds = {"x": np.random.default_rng(1).random((1, 12, 16, 16), np.float32)}
    assert np.allclose(
        Session(model).run(feeds)["y"], Session(make_explicit(model)).run(feeds)["y"], rtol=1e-5
    )


OLDER = {
    17: (
        "a = Conv(x, w) b = Relu(a) c = Reshape<allowzero=0>(b, s) d = LeakyRelu(c) y = Identity(d)"
    ),
    18: "a = Conv(x, w) b = ReduceMean<keepdims=0>(a, i) y = Add(b, b)",
    11: "a = Conv(x, w) y = Squeeze<axes=[0]>(a)",
}


@pytest.mark.parametrize("opset", OLDER)
def test_other_opsets_are_converted(opset: int) -> None:
    source = graph(OLDER[opset], "float[8,12,3,3] w", opset)
    extra = {"s": np.array([1, -1]), "i": np.array([2, 3])}
    edited = source.edit()
    for name, values in extra.items():
        if f" {name})" in OLDER[opset]:
            edited.proto.graph.initializer.add(name=name, data_type=7, dims=values.shape)
            edited.weights[name] = from_array(values)  # type: ignore[index]
    prepared = prepare(edited, "m", TARGETS.get("hls4ml"))
    assert prepared.model.opset == 13 and not prepared.notes
    onnx.checker.check_model(onnx.load_from_string(to_bytes(prepared.model)), full_check=True)
    feeds = {"x": np.random.default_rng(1).random((1, 12, 16, 16), np.float32)}
    assert np.array_equal(Session(edited).run(feeds)["y"], Session(prepared.model).run(feeds)["y"])


def test_nodes_without_an_older_equivalent_are_noted() -> None:
    for opset, body, reason in (
        (18, "a = Conv(x, w) y = Mish(a)", "no Mish"),
        (19, "y = AveragePool<kernel_shape=[2,2], dilations=[2,2]>(x)", "'dilations'"),
    ):
        stuck = prepare(graph(body, "float[8,12,3,3] w", opset), "m", TARGETS.get("hls4ml"))
        assert stuck.model.opset == opset and reason in stuck.notes[0]


@given(WIDTHS, WIDTHS, st.sampled_from([1, 9, 25]), st.integers(1, 100), st.integers(1, 200_000))
def test_folding_divides_and_keeps_its_budget(
    channels: int, outputs: int, taps: int, positions: int, budget: int
) -> None:
    inputs = taps * channels
    chosen = folding(inputs, outputs, positions, budget, channels)
    assert inputs % chosen.simd == channels % chosen.simd == outputs % chosen.pe == 0
    assert chosen.cycles == inputs * outputs * positions // (chosen.pe * chosen.simd)
    fastest = taps * positions
    assert chosen.cycles <= max(budget, fastest)
    if chosen.pe * chosen.simd > 1:
        cheaper = [
            p * s
            for p in divisors(outputs)
            for s in divisors(channels)
            if p * s < chosen.pe * chosen.simd
        ]
        assert all(inputs * outputs * positions // c > budget for c in cheaper)


@given(st.integers(1, 10_000))
def test_divisors_are_all(number: int) -> None:
    assert divisors(number) == tuple(d for d in range(1, number + 1) if number % d == 0)


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 50))
def test_reuse_factors_are_valid(inputs: int, outputs: int, requested: int) -> None:
    factor = choose_reuse(inputs, outputs, requested)
    assert inputs * outputs % factor == 0 and (inputs % factor == 0 or factor % inputs == 0)
    assert inputs * outputs // factor <= UNROLLED_WEIGHTS


def test_finn_folding_file_names_every_unit(tmp_path: Path) -> None:
    handoff(
        stubs.convnet(16), stubs.convnet(8), "finn", tmp_path / "b", options={"target-fps": "20000"}
    )
    slow = json.loads((tmp_path / "b" / "folding_original.json").read_text())
    assert list(slow) == [
        "Defaults",
        "ConvolutionInputGenerator_rtl_0",
        "MVAU_hls_0",
        "ConvolutionInputGenerator_rtl_2",
        "MVAU_hls_1",
    ] + ["ConvolutionInputGenerator_rtl_3", "VVAU_hls_0", "MVAU_hls_2"]
    cycles = 32 // slow["MVAU_hls_1"]["PE"] * (144 // slow["MVAU_hls_1"]["SIMD"]) * 16
    assert cycles <= 1e9 / 5 / 20000
    with pytest.raises(UsageError, match="target-fps"):
        handoff(stubs.convnet(16), None, "finn", tmp_path / "c", options={"target-fps": "0"})


def test_synthesis_report_of_vitis_hls() -> None:
    text = (
        "<profile><PerformanceEstimates><SummaryOfTimingAnalysis><EstimatedClockPeriod>3.644</EstimatedClockPeriod></SummaryOfTimingAnalysis>"
        "<SummaryOfOverallLatency><Worst-caseLatency>421</Worst-caseLatency><Interval-max>undef</Interval-max></SummaryOfOverallLatency>"
        "</PerformanceEstimates><AreaEstimates><Resources><DSP>12</DSP><LUT>3456</LUT></Resources></AreaEstimates></profile>"
    )
    assert parse_synthesis(text) == {
        "latency_cycles": 421,
        "clock_ns": 3.644,
        "dsp": 12,
        "lut": 3456,
    }
    for broken in ("", "<profile/>", "<a>", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'):
        with pytest.raises(DataError):
            parse_synthesis(broken)


def test_vela_summary_needs_its_columns() -> None:
    with pytest.raises(DataError, match="cycles_total"):
        parse_summary("a,b\n1,2\n")


@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape=[2,2], strides=[2,2]",
        "kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1",
    ],
)
def test_average_pooling_as_a_convolution_is_the_same(attributes: str) -> None:
    source = graph(f"y = AveragePool<{attributes}>(x)", "")
    prepared = prepare(source, "m", TARGETS.get("hls4ml"))
    feeds = {"x": np.random.default_rng(1).random((1, 12, 16, 16), np.float32)}
    assert [n.op for n in prepared.nodes()] == ["Conv"]
    assert np.allclose(
        Session(source).run(feeds)["y"], Session(prepared.model).run(feeds)["y"], rtol=1e-5
    )


def test_hls4ml_supports_chains_only() -> None:
    checks = checks_of(
        graph(
            "a = Conv(x, w) b = Add(a, c) d = Concat<axis=1>(b, a) y = Relu(d)",
            "float[8,12,3,3] w, float[1,8,1,1] c",
        ),
        "hls4ml",
    )
    assert ("Concat", "unsupported") in checks and ("Add", "unsupported") not in checks


def test_average_pooling_that_excludes_its_padding_is_unsupported() -> None:
    assert ("AveragePool", "unsupported") in checks_of(
        graph("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", ""), "hls4ml"
    )
