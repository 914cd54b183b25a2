"""Timing by TensorRT's Python bindings (10 and 11) and the CUDA runtime by ctypes: for a JetPack without trtexec."""

from __future__ import annotations

import ctypes
import json
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import common  # type: ignore[import-not-found]  # beside this file in the bundle

HOW = "install JetPack's TensorRT and CUDA (sudo apt-get install nvidia-jetpack)"
PROFILE_RUNS = 50


class Cuda:
    """The few calls of the CUDA runtime that are needed."""

    def __init__(self) -> None:
        for name in ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"):
            try:
                self.library = ctypes.CDLL(name)
                return
            except OSError:
                continue
        common.fail("libcudart is not on this machine: " + HOW)

    def call(self, name: str, *values: Any) -> None:
        """A call that has to succeed."""
        status = getattr(self.library, name)(*values)
        if status:
            common.fail(f"{name} failed with CUDA error {status}")

    def allocate(self, size: int) -> ctypes.c_void_p:
        """Device memory, zeroed."""
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        self.call("cudaMemset", pointer, ctypes.c_int(0), ctypes.c_size_t(max(size, 1)))
        return pointer

    def handle(self, name: str) -> ctypes.c_void_p:
        """A stream or an event."""
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle))
        return handle


def build(trt: Any, logger: Any, path: Path, chosen: Namespace, results: Path) -> bytes:
    """A serialized engine; fp16 by flag on 10, by an fp16 graph on 11."""
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(1 << int(flag) if flag is not None else 0)
    config = builder.create_builder_config()
    flags = trt.BuilderFlag
    if chosen.precision == "fp16" and not hasattr(flags, "FP16"):
        path = path.with_name(path.stem + ".fp16.onnx")
    if chosen.precision == "int8" and path.with_name(path.stem + ".int8.onnx").is_file():
        path = path.with_name(path.stem + ".int8.onnx")
    if chosen.precision in ("fp16", "int8") and hasattr(flags, "FP16"):
        config.set_flag(flags.FP16)
    if chosen.precision == "int8" and hasattr(flags, "INT8"):
        config.set_flag(flags.INT8)
    if chosen.precision == "fp32" and hasattr(flags, "TF32"):
        config.clear_flag(flags.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        common.fail(f"TensorRT does not take {path.name}: {parser.get_error(0)}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        common.fail(f"TensorRT could not build {path.name}")
    engine = results / (path.stem + ".engine")
    engine.write_bytes(bytes(plan))
    return bytes(plan)


class Session:
    """An engine with its buffers."""

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
            size = (
                self.trt.volume(self.engine.get_tensor_shape(tensor))
                * self.engine.get_tensor_dtype(tensor).itemsize
            )
            self.context.set_tensor_address(tensor, self.cuda.allocate(size).value)
        self.stream = self.cuda.handle("cudaStreamCreate")
        self.begin, self.end = (
            self.cuda.handle("cudaEventCreate"),
            self.cuda.handle("cudaEventCreate"),
        )
        inspector = self.engine.create_engine_inspector()
        information = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        (results / (name + ".layers.json")).write_text(information)

    def once(self) -> float:
        """Milliseconds of one inference on the device."""
        self.cuda.call("cudaEventRecord", self.begin, self.stream)
        self.context.execute_async_v3(self.stream.value)
        self.cuda.call("cudaEventRecord", self.end, self.stream)
        self.cuda.call("cudaEventSynchronize", self.end)
        elapsed = ctypes.c_float()
        self.cuda.call("cudaEventElapsedTime", ctypes.byref(elapsed), self.begin, self.end)
        return elapsed.value

    def times(self, warm_up_s: float, duration_s: float) -> list[dict[str, float]]:
        """Rows as trtexec's exportTimes writes them, warm-up included."""
        rows, origin = [], time.perf_counter()
        while time.perf_counter() - origin < warm_up_s + duration_s:
            at = 1e3 * (time.perf_counter() - origin)
            compute = self.once()
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
        """Time by layer as trtexec's exportProfile writes it."""

        class Recorder(self.trt.IProfiler):  # type: ignore[name-defined, misc]
            """Sums of the layers' times."""

            def __init__(self) -> None:
                super().__init__()
                self.total: dict[str, float] = {}

            def report_layer_time(self, layer: str, ms: float) -> None:
                """Called by TensorRT after each inference."""
                self.total[layer] = self.total.get(layer, 0.0) + ms

        recorder = self.context.profiler = Recorder()
        for _ in range(PROFILE_RUNS):
            self.once()
        whole = sum(recorder.total.values()) or 1.0
        rows: list[dict[str, Any]] = [{"count": PROFILE_RUNS}]
        for layer, total in recorder.total.items():
            rows.append(
                {
                    "name": layer,
                    "timeMs": total,
                    "averageMs": total / PROFILE_RUNS,
                    "percentage": 100 * total / whole,
                }
            )
        path.write_text(json.dumps(rows))
