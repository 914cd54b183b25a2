"""Logs of trtexec and tegrastats, old and new; DLA checks; the run script against stubs."""

from __future__ import annotations

import ast
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stubs
from onnx import parser

from onnxprune.data.dataset import open_data
from onnxprune.deploy.bundle import check
from onnxprune.deploy.handoff import collect, handoff
from onnxprune.deploy.jetson import TARGET, _list_gpu_layers, busy_mw, parse_tegrastats
from onnxprune.deploy.prepare import prepare
from onnxprune.engines.trt_logs import parse_profile, parse_times
from onnxprune.errors import DataError
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.quantize.static import quantize

ORIN = (
    "11-22-2026 03:13:53 RAM 3210/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [12%@1510,0%@1510,off,off] EMC_FREQ 3%@2133 "
    "GR3D_FREQ 14%@[420] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@48.7C gpu@47.9C tj@49C "
    "VDD_IN 4521mW/4500mW VDD_CPU_GPU_CV 1320mW/1300mW VDD_SOC 1400mW/1390mW"
)
AGX_ORIN = (
    "GR3D_FREQ 99%@[1300,1300] VDD_GPU_SOC 2400mW/2400mW VDD_CPU_CV 800mW/790mW "
    "VIN_SYS_5V0 4000mW/4000mW VDDQ_VDD2_1V8AO 700mW/700mW"
)
NANO = (
    "RAM 1903/3964MB (lfb 2x2MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [25%@921,off,off,18%@921] EMC_FREQ 5%@1600 "
    "GR3D_FREQ 76%@921 APE 25 PLL@31C POM_5V_IN 2532/2540 POM_5V_GPU 123/120 POM_5V_CPU 328/330"
)
XAVIER = (
    "RAM 1/2MB GR3D_FREQ 50%@1377 GPU 1000/900 CPU 310/310 SOC 930/930 CV 0/0 VDDRQ 155/155 "
    "SYS5V 1240/1240"
)


@pytest.mark.parametrize(
    ("line", "gpu", "total", "rails"),
    [
        (ORIN, 14, 4521, 3),
        (AGX_ORIN, 99, 7200, 4),
        (NANO, 76, 2532, 3),
        (XAVIER, 50, 3635, 6),
        ("RAM 1/2MB GR3D 88%@1109 VDD_IN 3532/3600", 88, 3532, 1),
    ],
)
def test_tegrastats_lines_old_and_new(line: str, gpu: float, total: float, rails: int) -> None:
    (sample,) = parse_tegrastats("1795317233.125 " + line)
    assert sample.at_s == 1795317233.125
    assert (sample.gpu_percent, sample.total_mw, len(sample.rails_mw)) == (gpu, total, rails)
    (plain,) = parse_tegrastats(line)
    assert np.isnan(plain.at_s) and plain.rails_mw == sample.rails_mw


def test_power_is_that_of_the_busy_gpu() -> None:
    lines = [
        f"GR3D_FREQ {gpu}%@[420] VDD_IN {mw}mW/1mW"
        for gpu, mw in [(0, 1000), (3, 1200), (90, 5000), (98, 7000), (1, 900)]
    ]
    assert busy_mw(parse_tegrastats("\n".join(lines))) == 6000
    assert (
        busy_mw(parse_tegrastats("GR3D_FREQ 0%@[420] VDD_IN 1000mW/1mW\nVDD_IN 3000mW/1mW")) == 2000
    )
    assert np.isnan(busy_mw(parse_tegrastats("RAM 3210/7620MB (lfb 4x4MB) GR3D_FREQ 14%@[420]")))


def rows(form: str) -> str:
    """Ten inferences, one every 2 ms, 1.5 ms each; the first five are three times slower."""
    inferences = []
    for i in range(10):
        compute = 4.5 if i < 5 else 1.5
        if form == "new":
            inferences.append(
                {
                    "startEnqMs": 2.0 * i,
                    "h2dMs": 0.1,
                    "computeMs": compute,
                    "d2hMs": 0.1,
                    "latencyMs": compute + 0.2,
                    "endToEndMs": 9.0,
                }
            )
        else:
            inferences.append(
                {
                    "startInMs": 2.0 * i,
                    "inMs": 0.1,
                    "computeMs": compute,
                    "outMs": 0.1,
                    "latencyMs": compute + 0.2,
                    "endToEndMs": 9.0,
                }
            )
    return json.dumps(inferences)


@pytest.mark.parametrize("form", ["new", "old"])
def test_times_drop_the_warm_up(form: str) -> None:
    everything, warm = parse_times(rows(form)), parse_times(rows(form), warm_up_ms=10.0)
    assert len(everything.latency_ms) == 10 and everything.latency_ms.mean() == 3.0
    assert warm.latency_ms.tolist() == [1.5] * 5
    assert warm.period_ms == everything.period_ms == 2.0


def test_profile_skips_the_count_and_adds_equal_names() -> None:
    layers = [
        {"name": "a", "timeMs": 4.0, "averageMs": 1.0, "percentage": 50},
        {"name": "b", "timeMs": 2.0},
        {"name": "a", "averageMs": 0.5},
    ]
    assert parse_profile(json.dumps([{"count": 4}, *layers])) == {"a": 1.5, "b": 0.5}


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", '[{"x": 1}]', "[" * 50_000])
def test_broken_logs_are_errors(text: str) -> None:
    with pytest.raises(DataError):
        parse_times(text)


def find_highest_mode(text: str) -> str:
    """Call the function of run.py, which is no module of the package."""
    source = resources.files("onnxprune.deploy.scripts").joinpath("jetson.py").read_text()
    tree = ast.parse(source)
    tree.body = [n for n in tree.body if getattr(n, "name", "") == "find_highest_mode"]
    names: dict[str, Any] = {"re": re}
    exec(compile(tree, "jetson.py", "exec"), names)
    return str(names["find_highest_mode"](text))


DLA = """
<ir_version: 8, opset_import: ["" : 13]>
g (float[1,3,64,64] x) => (float[1,10] y) <float[16,3,35,35] w, float[12,16,3,3] v, float[12,10] f>
{ a = Conv(x, w)  b = Gelu(a)  c = Conv<group=1>(b, v)  d = MaxPool<kernel_shape=[9,9]>(c)
  e = GlobalAveragePool(d)  h = Flatten(e)  y = MatMul(h, f) }
"""


def test_dla_checks_name_what_falls_back() -> None:
    proto = parser.parse_model(DLA)
    for value in list(proto.graph.value_info):
        proto.graph.initializer.add(
            name=value.name,
            data_type=1,
            dims=[d.dim_value for d in value.type.tensor_type.shape.dim],
        ).raw_data = b""
    for tensor in proto.graph.initializer:
        tensor.raw_data = np.zeros(list(tensor.dims), np.float32).tobytes()
    del proto.graph.value_info[:]
    checks = {(c.op, c.severity): c.text for c in check(prepare(load(proto), "m", TARGET), TARGET)}
    assert "35x35" in checks["Conv", "fallback"]
    assert "9x9" in checks["MaxPool", "fallback"]
    assert ("Gelu", "fallback") in checks and ("MatMul", "fallback") in checks
    assert "12 output channels cost as much as 16" in checks["Conv", "slow"]


LAYERS = [
    {"Name": "images to nvm", "LayerType": "DLA copy"},
    {"Name": "conv1", "LayerType": "CaskConvolution"},
    {"Name": "{ForeignNode[conv2]}", "LayerType": "DLA"},
    {"Name": "{ForeignNode[head]}", "LayerType": "Myelin"},
    {"Name": "Reformatting CopyNode for Input Tensor 0 to conv1", "LayerType": "Reformat"},
]
TRTEXEC = (
    f"""
LAYERS = {json.dumps(json.dumps({"Layers": LAYERS}))}
"""
    + """
MS = 1.0 if "pruned" in str(args) else 2.0
ROWS = [
    {"startEnqMs": 2.0 * i, "h2dMs": 0, "computeMs": MS, "d2hMs": 0, "latencyMs": 2.1}
    for i in range(600)
]
LAYER = {"name": "conv1 + relu1", "timeMs": 1.0, "averageMs": 1.0, "percentage": 100}
if args == ["--help"]:
    print("--onnx --skipInference --useSpinWait --noDataTransfers --useCudaGraph")
    print("--timingCacheFile --profilingVerbosity --noTF32 --loadInputs --exportOutput")
    print(os.environ.get("FLAGS", ""))
for a in args:
    name, _, path = a.partition("=")
    if name == "--saveEngine":
        pathlib.Path(path).write_bytes(b"engine")
    if name == "--loadInputs":
        assert pathlib.Path(path.split("'images':")[1]).stat().st_size == 4 * 64
    if name == "--exportOutput":
        values = [float(v) for v in os.environ["VALUES"].split()]
        pathlib.Path(path).write_text(json.dumps([{"name": "logits", "values": values}]))
    if name == "--exportTimes":
        time.sleep(0.3)
        pathlib.Path(path).write_text(json.dumps(ROWS))
    if name == "--exportProfile":
        pathlib.Path(path).write_text(json.dumps([{"count": 1}, LAYER]))
    if name == "--exportLayerInfo":
        pathlib.Path(path).write_text(LAYERS)
    if name in ("--onnx", "--loadEngine") and not pathlib.Path(path).is_file():
        sys.exit("no such file: " + path)
"""
)


def board(folder: Path) -> Path:
    """Write the commands of a JetPack."""
    stubs.command(folder, "trtexec", TRTEXEC)
    stubs.command(
        folder,
        "tegrastats",
        "while True:\n"
        "    print('GR3D_FREQ 97%@[918] VDD_IN 8000mW/8000mW', flush=True)\n"
        "    time.sleep(0.05)",
    )
    # the modes of an Orin Nano, where 0 is not the highest
    modes = "15W 25W MAXN_SUPER 7W".split()
    listed = "".join(f"NVPM VERB: POWER_MODEL: ID={i} NAME={n}\n" for i, n in enumerate(modes))
    stubs.command(
        folder, "nvpmodel", f"print({listed!r} if '-p' in args else 'NV Power Mode: MAXN_SUPER')"
    )
    stubs.command(folder, "jetson_clocks", "print('clocks')")
    stubs.command(folder, "sudo", "sys.exit(subprocess.call(args[1:]))")
    return folder


def arguments(binaries: Path, name: str) -> list[list[str]]:
    """Return the arguments of each call of a stub."""
    return [json.loads(line) for line in (binaries / f"{name}.args").read_text().splitlines()]


@pytest.mark.parametrize("major", [10, 11])
def test_bundle_runs_on_a_machine_with_jetpack_only(tmp_path: Path, major: int) -> None:
    bundle, binaries = tmp_path / "bundle", board(tmp_path / "bin")
    handoff(
        stubs.convnet(16), stubs.convnet(8), "jetson", bundle, options={"rounds": "2", "idle": "0"}
    )
    with np.load(bundle / "expected_original.npz") as arrays:
        values = " ".join(map(str, arrays["output_0"][0].tolist()))
    flags = "--fp16 --int8" if major == 10 else ""
    done = stubs.run(bundle, binaries, extra={"FLAGS": flags, "VALUES": values})
    assert done.returncode == 0, done.stderr
    calls = arguments(binaries, "trtexec")
    builds = [c for c in calls if any(a.startswith("--saveEngine") for a in c)]
    assert all(("--fp16" in c) == (major == 10) for c in builds)
    assert all(c[0].endswith(".fp16.onnx") == (major == 11) for c in builds)
    timed = [
        next(a for a in c if a.startswith("--exportTimes"))
        for c in calls
        if any(a.startswith("--exportTimes") for a in c)
    ]
    assert ["original" in t for t in timed] == [True, False, True, False]
    assert arguments(binaries, "nvpmodel")[:2] == [["-p", "--verbose"], ["-m", "2"]]
    # timed with the inputs of the bundle, and compared on the device: the stub gives all models
    # the outputs of the original
    loads = [c for c in calls if c[0].startswith("--loadEngine")]
    assert all(any(a.startswith("--loadInputs") for a in c) for c in loads)
    assert "warning: pruned: output logits differs" in done.stderr
    assert "warning: original" not in done.stderr
    collected = collect(bundle)
    assert collected.results["original"].figures["latency_ms"] == 2.0
    assert collected.ratios["latency_ms"] == 2.0
    assert collected.results["pruned"].figures["energy_mj"] == pytest.approx(
        8000 * 2.0 / 1000, rel=1e-6
    )
    assert collected.results["pruned"].layers == {"conv1 + relu1": 1.0}
    assert collected.environment["power_mode"] == "NV Power Mode: MAXN_SUPER"
    assert collected.results["original"].figures["output_difference"] == 0
    assert not collected.results["original"].notes
    (note,) = collected.results["pruned"].notes
    assert "outputs logits differ from onnxruntime's" in note and "0.02 is allowed" in note


def test_dla_run_names_the_layers_on_the_gpu(tmp_path: Path) -> None:
    bundle, binaries = tmp_path / "bundle", board(tmp_path / "bin")
    handoff(
        stubs.convnet(16),
        None,
        "jetson",
        bundle,
        options={"dla": "0", "rounds": "1", "precision": "fp32", "idle": "0"},
    )
    assert stubs.run(bundle, binaries, extra={"VALUES": "nan"}).returncode == 0
    assert "--useDLACore=0" in arguments(binaries, "trtexec")[1]
    assert any(
        "2 of 3 layers run on the GPU: conv1, {ForeignNode[head]}" in n
        for n in collect(bundle).results["original"].notes
    )
    # names only, as before TensorRT 8.6 without detailed verbosity
    assert _list_gpu_layers('{"Layers": ["conv1", "{ForeignNode[c2]}"]}') == [
        "1 of 2 layers run on the GPU: conv1"
    ]
    assert find_highest_mode("NVPM VERB: POWER_MODEL: ID=1 NAME=MODE_30W_ALL\n") == "1"
    assert find_highest_mode("") == "0"


def test_missing_tensorrt_is_one_line(tmp_path: Path) -> None:
    handoff(stubs.convnet(8), None, "jetson", tmp_path / "bundle")
    done = stubs.run(tmp_path / "bundle", tmp_path / "empty")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "trtexec" in done.stderr and "nvidia-jetpack" in done.stderr


def test_a_changed_file_is_an_error(tmp_path: Path) -> None:
    handoff(stubs.convnet(8), None, "jetson", tmp_path / "bundle")
    with open(tmp_path / "bundle" / "models" / "original.onnx", "ab") as file:
        file.write(b"x")
    done = stubs.run(tmp_path / "bundle", tmp_path / "empty")
    assert done.returncode == 1 and "original.onnx differs from the manifest" in done.stderr


def _refused(model: Model) -> list[str]:
    checks = check(prepare(model, "original", TARGET), TARGET)
    return [c.text for c in checks if c.severity == "unsupported"]


def test_int8_needs_inputs_and_runs_the_quantized_copy(tmp_path: Path) -> None:
    bundle, binaries, options = (
        tmp_path / "bundle",
        board(tmp_path / "bin"),
        {"precision": "int8", "rounds": "1", "idle": "0"},
    )
    with pytest.raises(DataError, match="--data"):
        handoff(stubs.convnet(8), None, "jetson", bundle, options=options)
    assert not bundle.exists()
    images = np.random.default_rng(0).random((16, 1, 8, 8), np.float32)
    handoff(stubs.convnet(8), None, "jetson", bundle, options=options, samples={"images": images})
    quantized = load(bundle / "models" / "original.int8.onnx")
    operators = [n.op_type for n in quantized.proto.graph.node]
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(operators) and "Conv" in operators
    # TensorRT fuses a layer and its Relu only if no pair is between them, and reads symmetric int8
    pairs = [n for n in quantized.proto.graph.node if n.op_type == "DequantizeLinear"]
    relus = [n for n in quantized.proto.graph.node if n.op_type == "Relu"]
    assert not {n.input[0] for n in relus} & {n.output[0] for n in pairs}
    zeros = [quantized.weights[n.input[2]].array() for n in pairs]
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert not _refused(quantized)
    data = open_data({"images": images}, Session(stubs.convnet(8)).inputs, samples=16)
    unfit = _refused(quantize(stubs.convnet(8), data, "u8s8", "minmax").model)
    assert unfit and all("--quantize-form tensorrt" in text for text in unfit)
    expected, actual = (
        Session(m).run({"images": images[:1]})["logits"] for m in (stubs.convnet(8), quantized)
    )
    assert np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()
    assert stubs.run(bundle, binaries, extra={"VALUES": "0"}).returncode == 0
    assert arguments(binaries, "trtexec")[1][0].endswith("original.int8.onnx")
