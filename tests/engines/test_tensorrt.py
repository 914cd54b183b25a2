"""Both major versions of TensorRT: against a stand-in, and on a GPU if there is one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_nets import residual
from fake_tensorrt import FakeCuda, module
from onnx import TensorProto

from onnxprune.engines import ENGINES, cuda, tensorrt
from onnxprune.engines.base import (
    EngineOptions,
    TensorSpec,
    fix_shapes,
    random_feeds,
    static_inputs,
)
from onnxprune.engines.bench_warnings import difference
from onnxprune.engines.tensorrt import TensorRtModel, build
from onnxprune.engines.trt_layers import layer_times
from onnxprune.errors import EngineError
from onnxprune.ir.half import to_half
from onnxprune.quantize.static import quantize_arrays

HALF_AGREES = 0.01  # 11 bits of mantissa through a dozen layers
TF32_AGREES = 1e-3
INT8_AGREES = 0.05  # ties may round to the other neighbor
MODEL = fix_shapes(residual(16), {})
FEEDS = random_feeds(static_inputs(MODEL, {}))
TENSORS = {"x": (True, (1, 3, 12, 12)), "y": (False, (1, 10))}


@pytest.fixture(params=(10, 11))
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize(
    ("precision", "flags"), [("f32", set()), ("f16", {"FP16"}), ("int8", {"INT8", "FP16"})]
)
def test_precision_is_by_flag_on_10_and_by_graph_on_11(
    major: int, precision: str, flags: set[str]
) -> None:
    trt = module(major, FakeCuda())
    assert build(trt, MODEL, EngineOptions(precision=precision)) == b"plan"
    assert {flag for call, flag in trt.calls if call == "set_flag"} == (
        flags if major == 10 else set()
    )
    assert (("clear_flag", "TF32") in trt.calls) == (precision == "f32")
    (parsed,) = [value for call, value in trt.calls if call == "parsed"]
    expected = TensorProto.FLOAT16 if precision == "f16" and major == 11 else TensorProto.FLOAT
    assert parsed.weights["c1.w"].dtype == expected
    assert parsed.proto.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_bfloat16_needs_version_10(major: int) -> None:
    trt = module(major, FakeCuda())
    if major == 10:
        assert build(trt, MODEL, EngineOptions(precision="bf16")) == b"plan"
    else:
        with pytest.raises(EngineError, match="bfloat16 graph"):
            build(trt, MODEL, EngineOptions(precision="bf16"))
        copy = MODEL.edit()
        copy.proto.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
        assert build(trt, copy.freeze(), EngineOptions(precision="bf16")) == b"plan"


def test_refusal_carries_the_parser_s_words() -> None:
    with pytest.raises(
        EngineError, match="tensorrt rejects the model: no importer for NoSuchOperator"
    ):
        build(
            module(10, FakeCuda(), refuse="no importer for NoSuchOperator\nat node 3"),
            MODEL,
            EngineOptions(),
        )


def test_timing_cache_is_kept_and_one_of_another_device_dropped(tmp_path: Path) -> None:
    trt, options = module(11, FakeCuda()), EngineOptions(cache=tmp_path / "cache")
    build(trt, MODEL, options)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.read_bytes() == b"+"
    build(trt, MODEL, options)
    assert file.read_bytes() == b"++"
    for content in (b"other device", b"corrupt"):
        file.write_bytes(content)
        build(trt, MODEL, options)
        assert file.read_bytes() == b"+"


@pytest.mark.parametrize("graphs", [True, False])
def test_a_model_runs_times_and_profiles(
    major: int, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FakeCuda(graphs)
    monkeypatch.setitem(sys.modules, "tensorrt", module(major, device, tensors=TENSORS))
    monkeypatch.setattr(cuda, "open_cuda", lambda: device)
    feeds = random_feeds(static_inputs(MODEL, {}))
    with TensorRtModel(MODEL, b"plan", EngineOptions()) as compiled:
        assert np.array_equal(compiled.run(feeds)["y"], np.full((1, 10), 3, np.float32))
        assert compiled.sample(feeds, 4) == [0.5] * 4
        assert (device.captured, device.launched) == ((1, 4) if graphs else (0, 0))
        layers = compiled.profile(feeds, 3)
        assert compiled.device_memory_bytes() == 1000 + len(b"plan")
        with pytest.raises(EngineError, match="built for"):
            compiled.run({"x": np.zeros((2, 3, 12, 12), np.float32)})
    assert [(layer.nodes, layer.time_ms) for layer in layers] == [
        (("n_c0", "n_r0"), 0.25),
        ((), 0.125),
    ]
    assert device.closed


def open_fake(
    monkeypatch: pytest.MonkeyPatch, device: FakeCuda, *, major: int = 11, **more: Any
) -> TensorRtModel:
    """Return a model of the stand-in."""
    fake = module(major, device, tensors={**TENSORS, **more.pop("tensors", {})}, **more)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(cuda, "open_cuda", lambda: device)
    return TensorRtModel(MODEL, b"plan", EngineOptions())


def test_a_failing_capture_is_noted_and_launches_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = FakeCuda()
    device.refuse_capture = True
    with open_fake(monkeypatch, device) as compiled:
        assert compiled.sample(FEEDS, 3) == [0.5] * 3
        assert compiled.sample(FEEDS, 3) == [0.5] * 3
        (note,) = compiled.notes()
    assert "no CUDA graph (cudaStreamEndCapture failed: unsupported)" in note


def test_profiling_needs_no_memory_for_a_second_context(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_fake(monkeypatch, FakeCuda(), contexts=1) as compiled:
        assert compiled.profile(FEEDS, 2)
        assert compiled.sample(FEEDS, 2) == [0.5] * 2, "the timed context is made again"


def test_failures_of_the_device_are_sentences_and_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = FakeCuda()
    with pytest.raises(EngineError, match="no execution context.*MB of device memory"):
        open_fake(monkeypatch, device, contexts=0)
    assert device.closed, "a constructor that fails frees what it allocated"
    with open_fake(monkeypatch, FakeCuda(), runs=False) as compiled:
        for call in (lambda: compiled.run(FEEDS), lambda: compiled.profile(FEEDS, 1)):
            with pytest.raises(EngineError, match="tensorrt cannot run the model"):
                call()


def test_types_that_numpy_lacks_and_values_of_shapes_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kinds = {"y": "BF16", "size": "HOST INT64"}
    extra = {"size": (False, (2,))}
    with open_fake(monkeypatch, FakeCuda(), tensors=extra, kinds=kinds) as compiled:
        compiled.outputs = (*compiled.outputs, "size")
        outputs = compiled.run(FEEDS)
        assert outputs["y"].dtype.name == "bfloat16" and float(outputs["y"][0, 0]) == 3
        assert outputs["size"].tolist() == [0x0101010101010101] * 2
    with pytest.raises(EngineError, match="type FP4 are not supported"):
        open_fake(monkeypatch, FakeCuda(), kinds={"y": "FP4"})
    bfloat16 = TensorSpec((64,), np.dtype(ml_dtypes.bfloat16))
    assert np.unique(random_feeds({"x": bfloat16})["x"].astype(np.float32)).size > 10


def test_device_memory_of_version_10_0(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_fake(monkeypatch, FakeCuda(), major=10) as compiled:
        engine = type(compiled._engine)
        monkeypatch.delattr(engine, "device_memory_size_v2")
        monkeypatch.setattr(engine, "device_memory_size", 70, raising=False)
        assert compiled.device_memory_bytes() == 70 + len(b"plan")


def test_an_output_whose_size_depends_on_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeCuda()
    monkeypatch.setitem(
        sys.modules,
        "tensorrt",
        module(10, device, tensors={"x": (True, (1, 3, 12, 12)), "y": (False, (-1, 6))}),
    )
    monkeypatch.setattr(cuda, "open_cuda", lambda: device)
    with pytest.raises(EngineError, match="depends on the data"):
        TensorRtModel(MODEL, b"plan", EngineOptions())


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("8.6.1", "needs TensorRT 10 or 11, 8.6.1 is installed"),
        ("10.3.0", "cuda-python"),
        ("11.4.0", "cuda-python"),
    ],
)
def test_missing_parts_are_named(
    version: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *_: object() if name == "tensorrt" else None
    )
    fake = module(10, FakeCuda())
    fake.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    reason = tensorrt.ENGINE.available()
    assert reason is not None and expected in reason and "pip install" in reason


def test_half_graph_computes_nearly_the_same() -> None:
    feeds = random_feeds(static_inputs(MODEL, {}))
    outputs = []
    for model in (MODEL, to_half(MODEL)):
        with ENGINES.get("onnxruntime").compile(model, EngineOptions()) as compiled:
            outputs.append(compiled.run(feeds))
    assert 0 < difference(outputs[1], outputs[0]) <= HALF_AGREES


@pytest.mark.parametrize(
    ("layer", "nodes"),
    [
        (
            {
                "Name": "a",
                "LayerType": "CaskConvolution",
                "Metadata": "[ONNX Layer: n_c1]\x1e[ONNX Layer: n_r1]",
            },
            ("n_c1", "n_r1"),
        ),
        ({"Name": "n_c2 + n_a2 + n_r2", "LayerType": "CaskConvolution"}, ("n_c2", "n_a2", "n_r2")),
        ("n_c1 + n_r1", ("n_c1", "n_r1")),
        ({"Name": "PWN(PWN(n_a2), n_r2)", "LayerType": "PointWiseV2"}, ("n_a2", "n_r2")),
        (
            {
                "Name": "__myl_Conv",
                "LayerType": "kgen",
                "Outputs": [{"Name": "p", "Dimensions": [1]}],
            },
            ("n_p",),
        ),
        (
            {
                "Name": "Reformatting CopyNode for Input Tensor 0 to n_c0",
                "LayerType": "Reformat",
                "Outputs": [{"Name": "c0"}],
            },
            (),
        ),
        ("{ForeignNode[n_c0...n_y]}", ()),
    ],
)
def test_layers_find_their_nodes(layer: object, nodes: tuple[str, ...]) -> None:
    import json

    name = layer["Name"] if isinstance(layer, dict) else str(layer)
    (layer_time,) = layer_times(json.dumps({"Layers": [layer]}), {name: 1.5}, MODEL.proto)
    assert (layer_time.name, layer_time.nodes, layer_time.time_ms) == (name, nodes, 1.5)


def test_layer_information_that_is_none_is_an_error() -> None:
    with pytest.raises(EngineError, match="not TensorRT's layer information"):
        layer_times("{", {}, MODEL.proto)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "limit"), [("f32", TF32_AGREES), ("f16", HALF_AGREES)])
@pytest.mark.parametrize("name", ["tensorrt", "trtexec", "onnxruntime-tensorrt"])
def test_on_a_gpu(name: str, precision: str, limit: float, tmp_path: Path) -> None:
    engine = ENGINES.get(name)
    if (reason := engine.available()) is not None:
        pytest.skip(reason)
    feeds = random_feeds(static_inputs(MODEL, {}))
    with ENGINES.get("onnxruntime").compile(MODEL, EngineOptions(level="off")) as compiled:
        expected = compiled.run(feeds)
    with engine.compile(MODEL, EngineOptions(precision=precision, cache=tmp_path)) as compiled:
        assert difference(compiled.run(feeds), expected) <= limit
        assert min(compiled.sample(feeds, 20)) > 0
        layers = compiled.profile(feeds, 5)
    if name != "onnxruntime-tensorrt":
        assert any(layer.nodes for layer in layers)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tensorrt", "trtexec"])
def test_a_graph_with_quantizers_runs_in_int8_on_a_gpu(name: str) -> None:
    engine = ENGINES.get(name)
    if (reason := engine.available()) is not None:
        pytest.skip(reason)
    feeds = random_feeds(static_inputs(MODEL, {}))
    model = quantize_arrays(MODEL, feeds, "tensorrt")
    with ENGINES.get("onnxruntime").compile(model, EngineOptions(level="off")) as compiled:
        expected = compiled.run(feeds)
    with engine.compile(model, EngineOptions(precision="int8")) as compiled:
        assert difference(compiled.run(feeds), expected) <= INT8_AGREES


@pytest.mark.gpu
def test_graphs_of_the_driver_time_beside_pycuda_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ENGINES.get("tensorrt")
    pytest.importorskip("pycuda")
    if (reason := engine.available()) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(cuda, "open_cuda", cuda.PyCuda)
    feeds = random_feeds(static_inputs(MODEL, {}))
    with engine.compile(MODEL, EngineOptions()) as compiled:
        assert min(compiled.sample(feeds, 20)) > 0
