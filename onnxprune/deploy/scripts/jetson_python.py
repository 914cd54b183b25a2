"""Build and time engines with TensorRT's Python bindings (10 and 11) if trtexec is missing.

The CUDA runtime is called by ctypes, so that no further package is needed.
"""

from __future__ import annotations

import ctypes
import json
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

HOW = "install JetPack's TensorRT and CUDA (sudo apt-get install nvidia-jetpack)"
PROFILE_RUNS = 50
KINDS = {"FLOAT": "f4", "HALF": "f2", "INT32": "i4", "INT64": "i8", "INT8": "i1", "BOOL": "b1"}


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

    def upload(self, pointer: ctypes.c_void_p, data: bytes) -> None:
        """Copy bytes to the device (cudaMemcpyHostToDevice)."""
        self.call("cudaMemcpy", pointer, data, ctypes.c_size_t(len(data)), ctypes.c_int(1))

    def download(self, pointer: ctypes.c_void_p, size: int) -> bytes:
        """Return bytes of the device (cudaMemcpyDeviceToHost)."""
        data = ctypes.create_string_buffer(max(size, 1))
        self.call("cudaMemcpy", data, pointer, ctypes.c_size_t(size), ctypes.c_int(2))
        return data.raw[:size]

    def capture(self, launch: Callable[[], None], stream: ctypes.c_void_p) -> ctypes.c_void_p:
        """Return a CUDA graph of what `launch` enqueues; OSError if it cannot be recorded."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        # 1: other threads may make calls that a capture forbids
        begun = self.library.cudaStreamBeginCapture(stream, ctypes.c_int(1))
        if not begun:
            launch()
        # in any case: a stream that is left in capture mode would fail every later call
        ended = self.library.cudaStreamEndCapture(stream, ctypes.byref(graph))
        if begun or ended or not graph:
            raise OSError(f"CUDA errors {begun} and {ended}")
        status = self.library.cudaGraphInstantiateWithFlags(
            ctypes.byref(executable), graph, ctypes.c_ulonglong(0)
        )
        if status:
            raise OSError(f"CUDA error {status}")
        return executable

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
        if self.engine is None:
            common.fail(
                f"TensorRT cannot load the engine of {name}; its log above gives the reason"
            )
        self.context = self.engine.create_execution_context()
        if self.context is None:
            common.fail(f"there is not enough device memory for the activations of {name}")
        self.buffers: dict[str, tuple[ctypes.c_void_p, int]] = {}
        self.hosted: dict[str, Any] = {}
        for index in range(self.engine.num_io_tensors):
            self.bind(self.engine.get_tensor_name(index))
        self.stream = self.cuda.handle("cudaStreamCreate")
        self.begin = self.cuda.handle("cudaEventCreate")
        self.end = self.cuda.handle("cudaEventCreate")
        inspector = self.engine.create_engine_inspector()
        information = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        (results / (name + ".layers.json")).write_text(information)
        self.graph: ctypes.c_void_p | None = None

    def bind(self, tensor: str) -> None:
        """Allocate the buffer of an input or output."""
        count = self.trt.volume(self.engine.get_tensor_shape(tensor))
        size = count * self.engine.get_tensor_dtype(tensor).itemsize
        # TensorRT reads and writes values of shapes on the host
        if self.engine.get_tensor_location(tensor) == self.trt.TensorLocation.HOST:
            self.hosted[tensor] = ctypes.create_string_buffer(max(size, 8))
            self.context.set_tensor_address(tensor, ctypes.addressof(self.hosted[tensor]))
            return
        pointer = self.cuda.allocate(size)
        self.buffers[tensor] = pointer, size
        self.context.set_tensor_address(tensor, pointer.value)

    def upload(self, inputs: dict[str, bytes]) -> None:
        """Copy the inputs to the device; zeros remain where a type differs."""
        for name, data in inputs.items():
            if name in self.buffers and self.buffers[name][1] == len(data):
                self.cuda.upload(self.buffers[name][0], data)

    def infer(self) -> dict[str, tuple[str, bytes]]:
        """Run once and return output -> (type as in .npy files, bytes)."""
        self.run()
        outputs = {}
        for name, (pointer, size) in self.buffers.items():
            kind = KINDS.get(self.engine.get_tensor_dtype(name).name)
            output = self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.OUTPUT
            if output and kind:
                outputs[name] = kind, self.cuda.download(pointer, size)
        return outputs

    def enqueue(self) -> None:
        """Enqueue one inference."""
        if self.graph is not None:
            self.cuda.call("cudaGraphLaunch", self.graph, self.stream)
        elif not self.context.execute_async_v3(self.stream.value):
            common.fail("TensorRT cannot run the engine; its log above gives the reason")

    def run(self) -> float:
        """Run one inference and return its milliseconds on the device."""
        # times on the device, without the time of the call
        self.cuda.call("cudaEventRecord", self.begin, self.stream)
        self.enqueue()
        self.cuda.call("cudaEventRecord", self.end, self.stream)
        self.cuda.call("cudaEventSynchronize", self.end)
        elapsed = ctypes.c_float()
        self.cuda.call("cudaEventElapsedTime", ctypes.byref(elapsed), self.begin, self.end)
        return elapsed.value

    def times(self, warm_up_s: float, duration_s: float) -> list[dict[str, float]]:
        """Time inferences for so long; return rows in the format of trtexec's exportTimes.

        Rows of the warm-up are included; their start times tell them from the others. Inferences
        are replayed as a CUDA graph, as trtexec does, if one can be recorded.
        """
        self.run()
        if self.graph is None:
            try:
                self.graph = self.cuda.capture(self.enqueue, self.stream)
            except (OSError, AttributeError) as problem:
                common.say(f"no CUDA graph ({problem}): times include kernel launches")
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

        self.graph = None
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
