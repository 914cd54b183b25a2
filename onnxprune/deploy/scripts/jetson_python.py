"""Build and time engines with TensorRT's Python bindings (10 and 11) if trtexec is missing.

The CUDA runtime is called by ctypes, so that no further package is needed.
"""

from __future__ import annotations

import ctypes
import json
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import common

HOW = "install JetPack's TensorRT and CUDA (sudo apt-get install nvidia-jetpack)"
PROFILE_RUNS = 50


class Cuda:
    """The calls of the CUDA runtime that a session needs."""

    def __init__(self) -> None:
        for name in ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"):
            try:
                self.library = ctypes.CDLL(name)
                return
            except OSError:
                continue
        common.fail("libcudart is not installed on this machine: " + HOW)

    def call(self, name: str, *values: Any) -> None:
        """Call a function of the runtime; exit if it returns an error."""
        status = getattr(self.library, name)(*values)
        if status:
            common.fail(f"{name} failed with CUDA error {status}")

    def allocate(self, size: int) -> ctypes.c_void_p:
        """Allocate zeroed device memory of `size` bytes."""
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        self.call("cudaMemset", pointer, ctypes.c_int(0), ctypes.c_size_t(max(size, 1)))
        return pointer

    def handle(self, name: str) -> ctypes.c_void_p:
        """Create a stream or an event by the function of that name."""
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle))
        return handle


def choose_precision(trt: Any, config: Any, path: Path, precision: str) -> Path:
    """Set the builder's precision flags and return the model file to build.

    TensorRT 10 lowers a float graph by flags; 11 has no flags and takes a graph in fp16.
    """
    flags = trt.BuilderFlag
    if precision == "fp16" and not hasattr(flags, "FP16"):
        path = path.with_name(path.stem + ".fp16.onnx")
    if precision == "int8" and path.with_name(path.stem + ".int8.onnx").is_file():
        path = path.with_name(path.stem + ".int8.onnx")
    if precision in ("fp16", "int8") and hasattr(flags, "FP16"):
        config.set_flag(flags.FP16)
    if precision == "int8" and hasattr(flags, "INT8"):
        config.set_flag(flags.INT8)
    if precision == "fp32" and hasattr(flags, "TF32"):
        config.clear_flag(flags.TF32)
    return path


def build(trt: Any, logger: Any, path: Path, chosen: Namespace, results: Path) -> bytes:
    """Build an engine, write it to the results and return it serialized."""
    builder = trt.Builder(logger)
    # TensorRT 10 needs the flag that 11 removed
    flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(1 << int(flag) if flag is not None else 0)
    config = builder.create_builder_config()
    path = choose_precision(trt, config, path, chosen.precision)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        common.fail(f"TensorRT cannot parse {path.name}: {parser.get_error(0)}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        common.fail(
            f"TensorRT cannot build an engine of {path.name}; its log above gives the reason"
        )
    engine = results / (path.stem + ".engine")
    engine.write_bytes(bytes(plan))
    return bytes(plan)


class Session:
    """An engine with buffers for its inputs and outputs."""

    def __init__(self, name: str, path: Path, chosen: Namespace, results: Path) -> None:
        self.trt = common.module("tensorrt", HOW)
        self.cuda = Cuda()
        logger = self.trt.Logger(self.trt.Logger.WARNING)
        self.runtime = self.trt.Runtime(logger)
        self.engine = self.runtime.deserialize_cuda_engine(
            build(self.trt, logger, path, chosen, results)
        )
        self.context = self.engine.create_execution_context()
        for index in range(self.engine.num_io_tensors):
            tensor = self.engine.get_tensor_name(index)
            count = self.trt.volume(self.engine.get_tensor_shape(tensor))
            size = count * self.engine.get_tensor_dtype(tensor).itemsize
            self.context.set_tensor_address(tensor, self.cuda.allocate(size).value)
        self.stream = self.cuda.handle("cudaStreamCreate")
        self.begin = self.cuda.handle("cudaEventCreate")
        self.end = self.cuda.handle("cudaEventCreate")
        inspector = self.engine.create_engine_inspector()
        information = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        (results / (name + ".layers.json")).write_text(information)

    def run(self) -> float:
        """Run one inference and return its milliseconds on the device."""
        # times on the device, without the time of the call
        self.cuda.call("cudaEventRecord", self.begin, self.stream)
        self.context.execute_async_v3(self.stream.value)
        self.cuda.call("cudaEventRecord", self.end, self.stream)
        self.cuda.call("cudaEventSynchronize", self.end)
        elapsed = ctypes.c_float()
        self.cuda.call("cudaEventElapsedTime", ctypes.byref(elapsed), self.begin, self.end)
        return elapsed.value

    def times(self, warm_up_s: float, duration_s: float) -> list[dict[str, float]]:
        """Time inferences for so long; return rows in the format of trtexec's exportTimes.

        Rows of the warm-up are included; their start times tell them from the others.
        """
        rows, origin = [], time.perf_counter()
        while time.perf_counter() - origin < warm_up_s + duration_s:
            at = 1e3 * (time.perf_counter() - origin)
            compute = self.run()
            rows.append(
                {
                    "startEnqMs": at,
                    "h2dMs": 0.0,
                    "computeMs": compute,
                    "d2hMs": 0.0,
                    "latencyMs": compute,
                }
            )
        return rows

    def profile(self, path: Path) -> None:
        """Time the layers and write them in the format of trtexec's exportProfile."""

        # the bindings exist on the device only
        class LayerTimes(self.trt.IProfiler):  # type: ignore[name-defined, misc]  # see above
            """Profiler that sums the time per layer."""

            def __init__(self) -> None:
                super().__init__()
                self.total: dict[str, float] = {}

            def report_layer_time(self, layer: str, ms: float) -> None:
                """Add a time; TensorRT calls this after each inference."""
                self.total[layer] = self.total.get(layer, 0.0) + ms

        layers = self.context.profiler = LayerTimes()
        for _ in range(PROFILE_RUNS):
            self.run()
        total_ms = sum(layers.total.values()) or 1.0
        rows: list[dict[str, Any]] = [{"count": PROFILE_RUNS}]
        for layer, ms in layers.total.items():
            rows.append(
                {
                    "name": layer,
                    "timeMs": ms,
                    "averageMs": ms / PROFILE_RUNS,
                    "percentage": 100 * ms / total_ms,
                }
            )
        path.write_text(json.dumps(rows))
