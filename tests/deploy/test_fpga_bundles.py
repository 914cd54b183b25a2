"""The run script of every bundle, with stand-ins for the vendors' tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import stubs

from onnxprune.deploy.handoff import TARGETS, collect, handoff
from onnxprune.ir.io import load

NEEDED = {
    "hls4ml": "tools/setup_hls4ml.sh",
    "nngen": "tools/setup_nngen.sh",
    "finn": "FINN_ROOT",
    "vitis-ai": "Vitis AI",
    "gemmini": "onnxruntime-riscv",
    "vela": "tools/setup_vela.sh",
    "jetson": "nvidia-jetpack",
    "remote": "runtime onnxruntime is not there",
}


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_missing_tool_is_one_sentence(tmp_path: Path, name: str) -> None:
    assert sorted(NEEDED) == sorted(TARGETS)
    handoff(stubs.convnet(8), None, name, tmp_path / "b")
    done = stubs.run(tmp_path / "b", tmp_path / "none", bare=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert NEEDED[name] in done.stderr


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_help_names_every_option(tmp_path: Path, name: str) -> None:
    handoff(stubs.convnet(8), None, name, tmp_path / "b")
    done = stubs.run(tmp_path / "b", tmp_path / "none", "--help")
    assert done.returncode == 0
    assert all(f"--{option}" in done.stdout for option in TARGETS.get(name).options)


def calls(binaries: Path, name: str) -> list[list[str]]:
    """Return the arguments of each call of a stand-in."""
    return [json.loads(line) for line in (binaries / f"{name}.args").read_text().splitlines()]


FINN = """
build = pathlib.Path(args[-1]) if args[0] == "build_dataflow" else pathlib.Path(args[1]).parent
config = json.loads((build / "dataflow_build_config.json").read_text())
folding = json.loads((build / "folding_config.json").read_text())
assert (build / "model.onnx").stat().st_size
report = build / config["output_dir"] / "report"
report.mkdir(parents=True)
cycles = 1000 // folding["MVAU_hls_1"]["PE"]
def write(name, value):
    (report / name).write_text(json.dumps(value))
write("estimate_network_performance.json", {
    "critical_path_cycles": 3 * cycles, "max_cycles": cycles,
    "max_cycles_node_name": "MVAU_hls_1", "estimated_throughput_fps": 5.0})
write("estimate_layer_cycles.json", {"MVAU_hls_0": 7, "MVAU_hls_1": cycles})
write("estimate_layer_resources.json", {"total": {"LUT": 1234.0, "BRAM_18K": 5.0}})
"""


@pytest.mark.parametrize("kind", ["run-docker.sh", "finn"])
def test_finn_by_docker_and_finn_plus(tmp_path: Path, kind: str) -> None:
    binaries = tmp_path / "bin"
    stubs.command(binaries, kind, FINN)
    handoff(stubs.convnet(16), stubs.convnet(8), "finn", tmp_path / "b")
    root = ["--finn-root", str(binaries)] if kind == "run-docker.sh" else []
    done = stubs.run(tmp_path / "b", binaries, *root)
    assert done.returncode == 0, done.stderr
    assert [c[0] for c in calls(binaries, kind)] == ["build_dataflow" if root else "build"] * 2
    collected = collect(tmp_path / "b")
    assert collected.results["original"].figures["lut"] == 1234
    assert collected.results["original"].layers["MVAU_hls_0"] == 7
    assert collected.results["pruned"].notes == ("slowest layer: MVAU_hls_1",)


def test_vitis_ai_in_the_container_and_on_the_board(tmp_path: Path) -> None:
    binaries, modules, arch = tmp_path / "bin", tmp_path / "modules", tmp_path / "arch.json"
    arch.write_text("{}")
    stubs.command(
        binaries,
        "vai_c_xir",
        (
            "folder, name = args[args.index('-o') + 1], args[args.index('-n') + 1]\n"
            "out = pathlib.Path(folder) / (name + '.xmodel')\n"
            "assert pathlib.Path(args[args.index('-x') + 1]).is_file()\nout.write_bytes(b'x')\n"
            "print('[UNILOG][INFO] Total device subgraph number 5, DPU subgraph number 2')"
        ),
    )
    stubs.module(
        modules,
        "vai_q_onnx",
        (
            "class QuantFormat: QDQ = 1\n"
            "class PowerOfTwoMethod: MinMSE = 1\n"
            "class QuantType: QInt8 = 1\n"
            "def quantize_static(source, output, reader, **options):\n"
            "    rows = 0\n    while reader.get_next() is not None: rows += 1\n"
            "    assert rows == 8 and options['enable_dpu']\n"
            "    open(output, 'wb').write(open(source, 'rb').read())\n"
        ),
    )
    handoff(
        stubs.convnet(16), stubs.convnet(8), "vitis-ai", tmp_path / "b", options={"arch": str(arch)}
    )
    done = stubs.run(tmp_path / "b", binaries, extra={"PYTHONPATH": str(modules)})
    assert done.returncode == 0, done.stderr
    collected = collect(tmp_path / "b").results["original"]
    assert collected.figures == {"subgraphs": 5, "dpu_subgraphs": 2} and len(collected.notes) == 2
    # an int8 copy of the bundle is compiled without AMD's quantizer
    images = {"images": np.random.default_rng(0).random((8, 1, 8, 8), np.float32)}
    options = {"arch": str(arch), "quantizer": "onnxprune"}
    handoff(stubs.convnet(8), None, "vitis-ai", tmp_path / "c", options=options, samples=images)
    copy = tmp_path / "c" / "models" / "original.int8.onnx"
    scales = [w.array() for name, w in load(copy).weights.items() if name.endswith("_scale")]
    assert scales and all(np.all(np.exp2(np.rint(np.log2(s))) == s) for s in scales)
    assert stubs.run(tmp_path / "c", binaries).returncode == 0
    assert calls(binaries, "vai_c_xir")[-1][1] == str(copy)
    (binaries / "vai_c_xir").unlink()
    stubs.command(
        binaries, "xdputil", "print('FPS= 250.5 number_of_frames= 5010 time= 20.0 seconds.')"
    )
    done = stubs.run(tmp_path / "b", binaries)
    assert done.returncode == 0, done.stderr
    assert calls(binaries, "xdputil")[1][0] == "benchmark"
    assert collect(tmp_path / "b").results["pruned"].figures["latency_ms"] == pytest.approx(
        1e3 / 250.5
    )


def test_gemmini_on_spike(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    stubs.command(binaries, "spike", "sys.exit(subprocess.call(args[2:]))")
    stubs.command(
        binaries,
        "ort_test",
        "print('Called into systolic conv')\nprint('Done! Inference took 123456 cycles')",
    )
    images = {"images": np.random.default_rng(0).random((8, 1, 8, 8), np.float32)}
    handoff(
        stubs.convnet(16),
        stubs.convnet(8),
        "gemmini",
        tmp_path / "b",
        options={"runner": str(binaries / "ort_test")},
        samples=images,
    )
    assert "QLinearConv" in {
        n.op_type for n in load(tmp_path / "b" / "models" / "pruned.int8.onnx").proto.graph.node
    }
    done = stubs.run(tmp_path / "b", binaries)
    assert done.returncode == 0, done.stderr
    assert calls(binaries, "spike")[0][:3] == [
        "--extension=gemmini",
        "pk",
        str(binaries / "ort_test"),
    ]
    assert calls(binaries, "spike")[0][4].endswith("original.int8.onnx")
    assert collect(tmp_path / "b").results["pruned"].figures == {
        "cycles": 123456,
        "systolic_calls": 1,
    }
    estimate = json.loads((tmp_path / "b" / "estimate.json").read_text())["models"]
    assert estimate["original"]["cycles"] > estimate["pruned"]["cycles"]


SUMMARY = (
    "experiment,network,inference_time,nn_macs,cycles_npu,cycles_total,sram_memory_used\\n"
    "default,n,0.0004,1000,190000,{},12.5\\n"
)
VELA = f"""
out, name = pathlib.Path(args[args.index("--output-dir") + 1]), pathlib.Path(args[0]).stem
assert pathlib.Path(args[0]).read_bytes() == b"int8"
cycles = 84133 if name == "pruned" else 192706
layers = "name,operators,cycles_total,cycles_npu\\nconv1,Conv2D,100,90\\nconv2,Conv2D,50,40\\n"
(out / (name + "_summary_internal-default.csv")).write_text("{SUMMARY}".format(cycles))
(out / (name + "_per-layer.csv")).write_text(layers)
"""


def test_vela_with_onnx2tf_and_with_given_files(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    stubs.command(binaries, "vela", VELA)
    stubs.command(
        binaries,
        "onnx2tf",
        (
            "out = pathlib.Path(args[args.index('-o') + 1])\nout.mkdir()\n"
            "shape = open(args[args.index('-cind') + 2], 'rb').read(128)\n"
            "assert b'(8, 8, 8, 1)' in shape, shape\n"
            "(out / 'original_full_integer_quant.tflite').write_bytes(b'int8')"
        ),
    )
    handoff(stubs.convnet(16), stubs.convnet(8), "vela", tmp_path / "b")
    done = stubs.run(tmp_path / "b", binaries)
    assert done.returncode == 0, done.stderr
    collected = collect(tmp_path / "b")
    assert collected.results["original"].figures["cycles"] == 192706
    assert collected.ratios["cycles"] == pytest.approx(192706 / 84133)
    assert collected.results["original"].layers == {"conv1": 100, "conv2": 50}
    (binaries / "onnx2tf").unlink()
    given = tmp_path / "given"
    given.mkdir()
    for name in ("original", "pruned"):
        (given / f"{name}.tflite").write_bytes(b"int8")
    assert (
        stubs.run(
            tmp_path / "b", binaries, "--tflite", str(given), "--results", str(tmp_path / "r")
        ).returncode
        == 0
    )


QONNX = """
class ModelWrapper:
    graph = type("G", (), {"input": [type("I", (), {"name": "images"})()]})()
    def __init__(self, path): assert open(path, "rb").read(1)
    def get_tensor_shape(self, name): return [1, 1, 8, 8]
    def transform(self, how):
        open("transforms", "a").write(type(how).__name__ + str(how.__dict__) + "\\n")
        return self
"""
HLS4ML = """
import numpy, pathlib
__version__ = "1.3.0"
class utils:
    def config_from_onnx_model(model, **options):
        layers = ("Conv_0", "Conv_1", "Conv_2", "MatMul_0")
        return {"Model": {}, "LayerName": {name: {} for name in layers}}
class Converted:
    def __init__(self, options): self.options = options
    def compile(self): pass
    def predict(self, values):
        assert values.shape == (8, 8, 8, 1) and values.dtype == numpy.float32
        print(self.options)
        return numpy.load(pathlib.Path(__file__).parent / "answer.npy")
    def build(self, csim, synth):
        folder = pathlib.Path(self.options["output_dir"]) / "prj" / "report"
        folder.mkdir(parents=True)
        text = "<SummaryOfOverallLatency><Worst-caseLatency>77</Worst-caseLatency>"
        text += "</SummaryOfOverallLatency>"
        text = "<profile><PerformanceEstimates>" + text + "</PerformanceEstimates></profile>"
        (folder / (self.options["project_name"] + "_csynth.xml")).write_text(text)
class converters:
    def convert_from_onnx_model(model, **options): return Converted(options)
"""


def test_hls4ml_compares_and_synthesizes(tmp_path: Path) -> None:
    binaries, modules = tmp_path / "bin", tmp_path / "modules"
    stubs.command(binaries, "g++", "")
    stubs.command(binaries, "vitis_hls", "")
    stubs.module(modules, "hls4ml", HLS4ML)
    stubs.module(modules, "qonnx.core.modelwrapper", QONNX)
    stubs.module(modules, "qonnx.util.cleanup", "def cleanup_model(model): return model")
    stubs.module(
        modules,
        "qonnx.transformation.channels_last",
        "class ConvertToChannelsLastAndClean:\n    def __init__(self, **o): self.o = o",
    )
    stubs.module(modules, "qonnx.transformation.gemm_to_matmul", "class GemmToMatMul: pass")
    handoff(
        stubs.convnet(16),
        None,
        "hls4ml",
        tmp_path / "b",
        options={"strategy": "Resource", "reuse": "3"},
    )
    with np.load(tmp_path / "b" / "expected_original.npz") as expected:
        answer = expected["output_0"].copy()
    answer[0] = -answer[0]
    np.save(modules / "hls4ml" / "answer.npy", answer)
    done = stubs.run(tmp_path / "b", binaries, extra={"PYTHONPATH": str(modules)}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'make_input_channels_last': True" in (tmp_path / "transforms").read_text()
    log = (tmp_path / "b" / "results" / "original.log").read_text()
    assert "'Conv_1': {'ReuseFactor': 3}" in log and "'Strategy': 'Resource'" in log
    collected = collect(tmp_path / "b").results["original"]
    assert collected.figures["argmax_agreement"] == 7 / 8
    assert collected.figures["latency_cycles"] == 77
