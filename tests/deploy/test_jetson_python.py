"""The run script without trtexec: against stand-ins for TensorRT's bindings and the CUDA runtime.

The names it uses are compared with the real bindings.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import stubs
from test_tensorrt_bindings import bindings, download, existing  # noqa: F401 - fixtures

from onnxprune.deploy.handoff import collect, handoff

CUDA = """
#include <stdlib.h>
#include <string.h>
int cudaMalloc(void **p, size_t n) { *p = malloc(n); return *p == 0; }
int cudaMemset(void *p, int v, size_t n) { memset(p, v, n); return 0; }
int cudaMemcpy(void *a, const void *b, size_t n, int k) { memcpy(a, b, n); return k < 1; }
int cudaStreamBeginCapture(void *s, int mode) { return s == 0; }
int cudaStreamEndCapture(void *s, void **g) { *g = malloc(1); return s == 0; }
int cudaGraphInstantiateWithFlags(void **e, void *g, unsigned long long f) {
  *e = malloc(1); return g == 0 || f; }
int cudaGraphLaunch(void *e, void *s) { return e == 0 || s == 0; }
int cudaStreamCreate(void **s) { *s = malloc(1); return 0; }
int cudaEventCreate(void **e) { *e = malloc(1); return 0; }
int cudaEventRecord(void *e, void *s) { return e == 0 || s == 0; }
int cudaEventSynchronize(void *e) { return e == 0; }
int cudaEventElapsedTime(float *ms, void *a, void *b) { *ms = 2.5f; return a == 0 || b == 0; }
"""
TENSORRT = """
import ctypes, enum, math, os, struct
class Logger:
    WARNING = 1
    def __init__(self, level): pass
NEW = os.environ["MAJOR"] == "11"
class NetworkDefinitionCreationFlag: pass
class BuilderFlag: pass
if not NEW:
    NetworkDefinitionCreationFlag.EXPLICIT_BATCH = 0
    BuilderFlag.FP16, BuilderFlag.TF32 = "FP16", "TF32"
class ProfilingVerbosity: DETAILED = 2
class LayerInformationFormat: JSON = 1
class IProfiler:
    def __init__(self): self.ready = True
def volume(shape): return math.prod(shape)
class Config:
    def set_flag(self, flag): open("flags", "a").write(flag)
    clear_flag = set_flag
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags): assert flags == (0 if NEW else 1); return self
    def create_builder_config(self): return Config()
    def build_serialized_network(self, network, config):
        assert config.profiling_verbosity == 2
        return memoryview(b"plan")
class OnnxParser:
    def __init__(self, network, logger): pass
    def parse(self, data): open("parsed", "a").write("%d " % len(data)); return True
class Kind: itemsize, name = 4, "FLOAT"
class TensorLocation: DEVICE, HOST = 0, 1
class TensorIOMode: INPUT, OUTPUT = 0, 1
NAMES, SHAPES = ("images", "logits", "size"), ((1, 1, 8, 8), (1, 10), (2,))
class Engine:
    num_io_tensors = 3
    def create_execution_context(self): return Context()
    def get_tensor_name(self, index): return NAMES[index]
    def get_tensor_shape(self, name): return SHAPES[NAMES.index(name)]
    def get_tensor_location(self, name): return int(name == "size")
    def get_tensor_mode(self, name): return int(name == "logits")
    def get_tensor_dtype(self, name): return Kind
    def create_engine_inspector(self): return self
    def get_engine_information(self, form): return '{"Layers": []}'
class Context:
    profiler, addresses = None, 0
    def set_tensor_address(self, name, address):
        assert address
        self.addresses += 1
        if name == "images": self.images = address
    def execute_async_v3(self, stream):
        assert stream and self.addresses == 3
        values = struct.unpack("64f", ctypes.string_at(self.images, 256))
        open("runs", "a").write("%g " % sum(values))
        if self.profiler:
            assert self.profiler.ready
            self.profiler.report_layer_time("conv", 2.0)
        return True
class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, plan): assert plan == b"plan"; return Engine()
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
@pytest.mark.parametrize("major", [10, 11])
def test_bindings_replace_trtexec(tmp_path: Path, major: int) -> None:
    libraries, modules, bundle = tmp_path / "lib", tmp_path / "modules", tmp_path / "bundle"
    libraries.mkdir()
    (tmp_path / "cuda.c").write_text(CUDA)
    subprocess.run(
        [
            "gcc",
            "-shared",
            "-fPIC",
            "-o",
            str(libraries / "libcudart.so"),
            str(tmp_path / "cuda.c"),
        ],
        check=True,
    )
    stubs.module(modules, "tensorrt", TENSORRT)
    handoff(
        stubs.convnet(8),
        None,
        "jetson",
        bundle,
        options={"rounds": "1", "duration": "0.2", "warm-up": "20", "clocks": "keep"},
    )
    extra = {"PYTHONPATH": str(modules), "LD_LIBRARY_PATH": str(libraries), "MAJOR": str(major)}
    done = stubs.run(bundle, tmp_path / "bin", extra=extra, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = collect(bundle).results["original"]
    assert result.figures["latency_ms"] == 2.5 and result.layers == {"conv": 2.0}
    single, half = (bundle / "models" / f"original{end}.onnx" for end in ("", ".fp16"))
    assert (
        int((tmp_path / "parsed").read_text()) == (half if major == 11 else single).stat().st_size
    )
    assert (tmp_path / "flags").exists() == (major == 10)
    # the first run is that of the comparison, with the bundle's inputs; replays of the graph are
    # not calls of the context
    with np.load(bundle / "inputs.npz") as arrays:
        total = arrays["images"][0].sum()
    runs = [float(text) for text in (tmp_path / "runs").read_text().split()]
    assert np.allclose(runs, total, rtol=1e-3) and len(runs) < result.figures["inferences"]
    assert "output logits differs" in done.stderr and result.figures["output_difference"] > 0.02


OWNERS = {
    "trt": "",
    "self.trt": "",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "flags": "BuilderFlag",
    "self.engine": "ICudaEngine",
    "self.context": "IExecutionContext",
    "self.runtime": "Runtime",
    "inspector": "EngineInspector",
}
GUARDED = {"BuilderFlag.FP16", "BuilderFlag.INT8", "BuilderFlag.TF32"}


def used() -> set[str]:
    """Return the dotted names of TensorRT that the script uses."""
    source = (
        resources.files("onnxprune.deploy.scripts")
        .joinpath("jetson_python.py")
        .read_text(encoding="utf-8")
    )
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and (owner := ast.unparse(node.value)) in OWNERS:
            names.add(".".join(filter(None, (OWNERS[owner], node.attr))))
    return names


@pytest.mark.slow
def test_names_exist_in_the_bindings_of_both_majors(bindings: tuple[int, Path]) -> None:  # noqa: F811
    major, folder = bindings
    names = used() - GUARDED
    assert len(names) > 15
    _, present = existing(folder, "tensorrt_bindings", names)
    assert present == names, f"TensorRT {major} has no {sorted(names - present)}"
