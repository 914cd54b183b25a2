"""TensorRT 10 and 11 by its Python bindings.

Version 11 dropped the precision flags: a graph runs in the types that it holds, so that float16
needs a float16 graph and int8 a graph with QuantizeLinear/DequantizeLinear. Features of one version
are detected by `hasattr`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxprune.engines import cuda
from onnxprune.engines.base import (
    Compiled,
    EngineOptions,
    LayerTime,
    Source,
    fix_shapes,
    missing_package,
    open_model,
    refusal,
    require,
    require_precision,
    static_inputs,
)
from onnxprune.engines.kernels import interquartile_mean
from onnxprune.engines.trt_layers import layer_times
from onnxprune.errors import EngineError
from onnxprune.files import write_bytes
from onnxprune.ir.half import to_half
from onnxprune.ir.io import Model, save
from onnxprune.scratch import Scratch

MAJORS = (10, 11)
MULTIPLES = {"f32": 1, "f16": 8, "bf16": 8, "int8": 32}  # channels per tile of a tensor core
WARMUP_RUNS = 10
# types that trt.nptype does not know -> (type of onnx, bytes)
_ONNX_TYPES = {"BF16": (TensorProto.BFLOAT16, 2), "FP8": (TensorProto.FLOAT8E4M3FN, 1)}
# int8 allows float16 too, for layers without an int8 kernel
_FLAGS = {"f16": ("FP16",), "bf16": ("BF16",), "int8": ("INT8", "FP16")}


@dataclass(frozen=True)
class TensorRt:
    """TensorRT's Python bindings on the first GPU."""

    name: str = "tensorrt"
    install: str = "pip install tensorrt cuda-python (on a Jetson both come with JetPack)"
    library: str = "tensorrt"

    def available(self) -> str | None:
        """Return None if bindings of a supported version and a GPU are found, else the reason."""
        if importlib.util.find_spec("tensorrt") is None:
            return missing_package(self.name, "tensorrt", self.install)
        # loading the bindings loads libraries that may be missing although the package is installed
        try:
            version = self.version()
        except (ImportError, OSError) as problem:
            reason = str(problem).splitlines()[0]
            return (
                f"engine {self.name}: the tensorrt package cannot be loaded ({reason}): "
                f"{self.install}"
            )
        if int(version.partition(".")[0]) not in MAJORS:
            return (
                f"engine {self.name} needs TensorRT {MAJORS[0]} or {MAJORS[1]}, "
                f"{version} is installed: {self.install}"
            )
        if not cuda.has_binding():
            return missing_package(self.name, "cuda-python or pycuda", self.install)
        return None if cuda.has_gpu() else cuda.missing_gpu(self.name, self.install)

    def version(self) -> str:
        """Return TensorRT's version, "" if the bindings are not installed."""
        if importlib.util.find_spec("tensorrt") is None:
            return ""
        import tensorrt

        return str(tensorrt.__version__)

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        """Build an engine and return it with its buffers."""
        require(self)
        require_precision(self.name, options, *MULTIPLES)
        import tensorrt

        # dynamic axes would need optimization profiles
        model = fix_shapes(open_model(source), options.shapes)
        return TensorRtModel(model, build(tensorrt, model, options), options)

    def limits(self) -> Mapping[str, str]:
        """Return limits of precision, shapes and CUDA graphs."""
        return {
            "precision": (
                "f32 runs without TF32; from version 11 on bf16 needs a bfloat16 graph, int8 needs "
                "Q/DQ in every version"
            ),
            "shapes": "outputs whose size depends on the data cannot be measured",
            "graph": (
                "if a CUDA graph cannot be recorded, times of small models include kernel launches"
            ),
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        """Return the channels per tile of a tensor core."""
        return MULTIPLES.get(dtype, MULTIPLES["f16"])


def build(trt: Any, model: Model, options: EngineOptions) -> bytes:
    """Build an engine and return it serialized.

    Parameters
    ----------
    trt
        The tensorrt module.

    Raises
    ------
    EngineError
        The parser or the builder rejects the model, or the precision needs another graph.
    """
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    # no flags: explicit batch is the only mode since version 10
    network = builder.create_network(0)
    config = builder.create_builder_config()
    parser = trt.OnnxParser(network, logger)
    # the graph must hold float16 where the flag is gone
    needs_half = options.precision == "f16" and not hasattr(trt.BuilderFlag, "FP16")
    with Scratch() as folder:
        path = Path(folder) / "model.onnx"
        save(to_half(model) if needs_half else model, path)
        # a path, so that TensorRT finds external data
        if not parser.parse_from_file(str(path)):
            errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise refusal("tensorrt", "; ".join(errors) or logger.worst)
    _set_precision(trt, config, options.precision, model)
    # without it, layers are names and cannot be mapped to nodes
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    cache = _load_timing_cache(trt, config, options.cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise refusal("tensorrt", logger.worst)
    # written after the build, which added the times of new kernels
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


class TensorRtModel(Compiled):
    """An engine with its buffers; times are measured by events on the device, without copies."""

    def __init__(self, model: Model, plan: bytes, options: EngineOptions) -> None:
        import tensorrt

        self._trt, self._model, self._size = tensorrt, model, len(plan)
        self._logger = _make_logger(tensorrt)
        self._cuda = cuda.open_cuda()
        self._inputs = static_inputs(model, {})
        self.outputs = tuple(o.name for o in model.proto.graph.output)
        self._arrays: dict[str, np.ndarray] = {}
        self._addresses: dict[str, int] = {}
        self._hosted: set[str] = set()
        self._notes: list[str] = []
        self._graph = options.cuda_graph and self._cuda.graphs
        self._launch: Callable[[], None] | None = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        try:
            self._open(plan)
        # memory of a model that cannot be opened must not be missing for the next one
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference, copies included."""
        self._upload(feeds)
        self._enqueue()
        self._cuda.synchronize()
        for name in self.outputs:
            if name not in self._hosted:
                self._cuda.download(self._arrays[name], self._addresses[name])
        return {name: self._arrays[name].copy() for name in self.outputs}

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Time inferences on the device, replayed as a CUDA graph if possible."""
        self._upload(feeds)
        if self._launch is None:
            # a capture must not contain the allocations of the first runs
            for _ in range(WARMUP_RUNS):
                self._enqueue()
            self._cuda.synchronize()
            self._launch = self._capture()
        return [self._cuda.time_ms(self._launch) for _ in range(count)]

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the time per layer in an execution context with a profiler."""
        self._upload(feeds)
        recorder = _make_profiler(self._trt)
        # a profiler slows its context down, so that the timed one has none; one after the other,
        # because each needs memory for all activations
        self._launch = self._context = None
        try:
            self._context = self._make_context()
            self._context.profiler = recorder
            for _ in range(count + 1):
                self._enqueue()
                self._cuda.synchronize()
        finally:
            self._context = None
            self._context = self._make_context()
        # the first inference is warm-up
        times = {name: interquartile_mean(ms[1:] or ms) for name, ms in recorder.times.items()}
        # the profile has names of layers only, the inspector their nodes
        inspector = self._engine.create_engine_inspector()
        information = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return layer_times(information, times, self._model.proto)

    def device_memory_bytes(self) -> int | None:
        """Return the size of the engine (weights and kernels) and its scratch memory."""
        # version 10.0 has only the older name, 11 only the newer one
        engine = self._engine
        only_old = hasattr(engine, "device_memory_size") and not hasattr(
            engine, "device_memory_size_v2"
        )
        size = engine.device_memory_size if only_old else engine.device_memory_size_v2
        return int(size) + self._size

    def notes(self) -> tuple[str, ...]:
        """Return what makes the times less comparable."""
        return tuple(self._notes)

    def close(self) -> None:
        """Release engine and device memory."""
        # references are dropped before the memory and the stream that they use
        self._launch = None
        self._context = self._engine = self._runtime = None
        self._cuda.close()

    def _open(self, plan: bytes) -> None:
        """Load the engine, allocate its buffers and make its context."""
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                "engine-refused",
                f"tensorrt cannot load the engine that it built: {self._logger.worst}",
            )
        # addresses stay the same: a captured graph replays with those of its capture
        for index in range(self._engine.num_io_tensors):
            self._allocate(self._engine.get_tensor_name(index))
        self._context = self._make_context()

    def _make_context(self) -> Any:
        """Return an execution context with the buffers' addresses."""
        context = self._engine.create_execution_context()
        if context is None:
            megabytes = (self.device_memory_bytes() or 0) / 1e6
            raise EngineError(
                "engine-refused",
                f"tensorrt has no execution context, which with its engine needs {megabytes:.0f} "
                f"MB of device memory: {self._logger.worst}",
            )
        for name, address in self._addresses.items():
            if not context.set_tensor_address(name, address):
                raise EngineError(
                    "engine-refused",
                    f"tensorrt refuses the buffer of {name!r}: {self._logger.worst}",
                )
        return context

    def _capture(self) -> Callable[[], None]:
        """Return the launch that is timed: a CUDA graph, else the call."""
        if not self._graph:
            return self._enqueue
        try:
            return self._cuda.capture(self._enqueue)
        # such as layers that synchronize; the calls themselves can still be timed
        except EngineError as problem:
            self._graph = False
            self._notes.append(
                f"no CUDA graph ({problem.message}): times of small models include kernel launches"
            )
            return self._enqueue

    def _allocate(self, name: str) -> None:
        """Allocate the buffers of an input or output on host and device."""
        shape = tuple(self._engine.get_tensor_shape(name))
        # buffers are allocated once, for static sizes
        if any(length < 0 for length in shape):
            raise EngineError(
                "engine-refused",
                f"tensorrt: the size of {name!r} {list(shape)} depends on the data; "
                "cut the graph before it",
            )
        dtype = _to_numpy(self._trt, self._engine.get_tensor_dtype(name))
        self._arrays[name] = np.zeros(shape, dtype)
        # TensorRT reads and writes values of shapes on the host
        if self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST:
            self._hosted.add(name)
            self._addresses[name] = self._arrays[name].ctypes.data
            return
        self._addresses[name] = self._cuda.allocate(self._arrays[name].nbytes)

    def _upload(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copy the inputs to the device."""
        for name in self._inputs:
            array = self._arrays.get(name)
            if array is None:  # the builder dropped an input without consumers
                continue
            if feeds[name].shape != array.shape:
                raise EngineError(
                    "engine-run",
                    f"tensorrt: input {name!r} has shape {list(feeds[name].shape)}, "
                    f"the engine was built for {list(array.shape)}",
                )
            # in place, which converts to the type of the buffer
            array[...] = feeds[name]
            if name not in self._hosted:
                self._cuda.upload(self._addresses[name], array)

    def _enqueue(self) -> None:
        """Enqueue one inference."""
        if self._context is None or not self._context.execute_async_v3(self._cuda.stream):
            raise EngineError("engine-run", f"tensorrt cannot run the model: {self._logger.worst}")


def _set_precision(trt: Any, config: Any, precision: str, model: Model) -> None:
    """Set the precision flags of version 10; 11 has none, the graph decides."""
    flags = trt.BuilderFlag
    if precision == "f32" and hasattr(flags, "TF32"):
        # TF32 keeps 10 bits of the mantissa of float32
        config.clear_flag(flags.TF32)
    if precision == "bf16" and not hasattr(flags, "BF16") and not holds_bfloat16(model):
        raise EngineError(
            "engine-precision",
            f"tensorrt {trt.__version__} runs bf16 only from a bfloat16 graph; "
            "pass --precision f16",
        )
    for name in _FLAGS.get(precision, ()):
        if hasattr(flags, name):
            config.set_flag(getattr(flags, name))


def holds_bfloat16(model: Model) -> bool:
    """Return whether inputs or weights of a graph are bfloat16."""
    graph = model.proto.graph
    kinds = {value.type.tensor_type.elem_type for value in graph.input}
    kinds |= {tensor.data_type for tensor in graph.initializer}
    return TensorProto.BFLOAT16 in kinds


def _load_timing_cache(trt: Any, config: Any, folder: Path | None) -> Path | None:
    """Give the builder the times of earlier builds; return their file, None without a folder.

    Files differ by version. TensorRT rejects times of another device and a corrupt file; then the
    cache starts empty.
    """
    if folder is None:
        return None
    path = folder / f"tensorrt-{trt.__version__}.timing"
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    # None for bytes that are no cache; False: one of another device is refused rather than used
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return path


def _to_numpy(trt: Any, kind: Any) -> np.dtype:
    """Return the numpy type of a tensor; those that numpy lacks come from ml_dtypes."""
    try:
        return np.dtype(trt.nptype(kind))
    # nptype knows the types of numpy only
    except TypeError:
        name = str(getattr(kind, "name", kind)).rpartition(".")[2]
        number, size = _ONNX_TYPES.get(name, (TensorProto.UNDEFINED, 0))
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(number)) if number else None
        # onnx before release 1.19 widens types that numpy lacks
        if dtype is None or dtype.itemsize != size:
            raise EngineError(
                "engine-refused",
                f"tensorrt: inputs and outputs of type {name} are not supported here; keep those "
                "of the graph at float32, or install onnx 1.19",
            ) from None
        return dtype


def _make_logger(trt: Any) -> Any:
    """Return a logger that keeps the last error for messages."""

    # defined here, because its base class exists only when TensorRT is installed
    class LastError(trt.ILogger):  # type: ignore[misc, name-defined]  # the module is an argument
        """Logger with the last error in `worst`."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.worst = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            """Keep an error; called by TensorRT."""
            # the last error is the reason; warnings of a successful build are no problem
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.worst = message

    return LastError()


def _make_profiler(trt: Any) -> Any:
    """Return a profiler that collects milliseconds per layer."""

    # defined here for the same reason as the logger
    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]  # the module is an argument
        """Profiler with layer -> milliseconds of each inference in `times`."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """Keep a time; called by TensorRT."""
            self.times.setdefault(layer_name, []).append(ms)

    return Profiler()


ENGINE = TensorRt()
