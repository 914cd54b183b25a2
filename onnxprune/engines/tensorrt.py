"""TensorRT 10 and 11 by one code path.

Version 11 dropped the precision flags: there a graph runs in the types that it holds, so float16 means a float16 graph and int8 a graph with
QuantizeLinear/DequantizeLinear. What only one of the two versions has is asked for by `hasattr`.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
from onnxprune.engines.kernels import middle_mean
from onnxprune.engines.trt_layers import layer_times
from onnxprune.errors import EngineError
from onnxprune.files import write_bytes
from onnxprune.ir.half import to_half
from onnxprune.ir.io import Model, save

MAJORS = (10, 11)
WORKSPACE_BYTES = 1 << 30
MULTIPLES = {"f32": 1, "f16": 8, "bf16": 8, "int8": 32}  # channels of a tensor core's tile
WARMUP_RUNS = 10
_FLAGS = {"f16": ("FP16",), "bf16": ("BF16",), "int8": ("INT8", "FP16")}


@dataclass(frozen=True)
class TensorRt:
    """TensorRT's Python bindings on the first GPU."""

    name: str = "tensorrt"
    install: str = "pip install tensorrt cuda-python (on a Jetson both come with JetPack)"
    library: str = "tensorrt"

    def available(self) -> str | None:
        if importlib.util.find_spec("tensorrt") is None:
            return missing_package(self.name, "tensorrt", self.install)
        try:
            version = self.version()
        except (ImportError, OSError) as problem:
            return f"engine {self.name}: the tensorrt package cannot be loaded ({str(problem).splitlines()[0]}): {self.install}"
        if int(version.partition(".")[0]) not in MAJORS:
            return f"engine {self.name} needs TensorRT {MAJORS[0]} or {MAJORS[1]}, found {version}: {self.install}"
        if not cuda.has_binding():
            return missing_package(self.name, "cuda-python or pycuda", self.install)
        return (
            None
            if cuda.has_gpu()
            else f"engine {self.name} needs an NVIDIA GPU with its driver, none is found; with one: {self.install}"
        )

    def version(self) -> str:
        if importlib.util.find_spec("tensorrt") is None:
            return ""
        import tensorrt

        return str(tensorrt.__version__)

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        require(self)
        require_precision(self.name, options, *MULTIPLES)
        import tensorrt

        model = fix_shapes(open_model(source), options.shapes)
        return TensorRtModel(model, build(tensorrt, model, options), options)

    def limits(self) -> Mapping[str, str]:
        return {
            "precision": "f32 has TF32 switched off; from version 11 on bf16 needs a bfloat16 graph, int8 needs Q/DQ in every version",
            "shapes": "outputs whose size depends on the data cannot be measured",
            "graph": "where a CUDA graph cannot be recorded, small models are timed with their launches",
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        return MULTIPLES.get(dtype, MULTIPLES["f16"])


def build(trt: Any, model: Model, options: EngineOptions) -> bytes:
    """A serialized engine.

    Parameters
    ----------
    trt
        The tensorrt module.

    Raises
    ------
    EngineError
        The parser or the builder refuses the model; the precision needs another graph.
    """
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    config = builder.create_builder_config()
    parser = trt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "model.onnx"
        save(
            to_half(model)
            if options.precision == "f16" and not hasattr(trt.BuilderFlag, "FP16")
            else model,
            path,
        )
        if not parser.parse_from_file(str(path)):
            raise refusal(
                "tensorrt",
                "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
                or logger.worst,
            )
    _set_precision(trt, config, options.precision)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    cache = _timing_cache(trt, config, options.cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise refusal("tensorrt", logger.worst)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


class TensorRtModel(Compiled):
    """An engine with its buffers; times are the device's, by events, without copies."""

    def __init__(self, model: Model, plan: bytes, options: EngineOptions) -> None:
        import tensorrt

        self._trt, self._model, self._size = tensorrt, model, len(plan)
        self._logger = _logger(tensorrt)
        self._cuda = cuda.open_cuda()
        self._inputs = static_inputs(model, {})
        self.outputs = tuple(o.name for o in model.proto.graph.output)
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                "engine-refused",
                f"tensorrt cannot load the engine that it built: {self._logger.worst}",
            )
        self._context = self._engine.create_execution_context()
        self._arrays: dict[str, np.ndarray] = {}
        self._addresses: dict[str, int] = {}
        for index in range(self._engine.num_io_tensors):
            self._bind(self._engine.get_tensor_name(index))
        self._graph = options.cuda_graph and self._cuda.graphs
        self._launch: Callable[[], None] | None = None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._upload(feeds)
        self._enqueue()
        self._cuda.synchronize()
        for name in self.outputs:
            self._cuda.download(self._arrays[name], self._addresses[name])
        return {name: self._arrays[name].copy() for name in self.outputs}

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        self._upload(feeds)
        if self._launch is None:
            for _ in range(WARMUP_RUNS):
                self._enqueue()
            self._cuda.synchronize()
            self._launch = self._cuda.capture(self._enqueue) if self._graph else self._enqueue
        return [self._cuda.time_ms(self._launch) for _ in range(count)]

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        self._upload(feeds)
        recorder = _recorder(self._trt)
        context = self._engine.create_execution_context()
        for name, address in self._addresses.items():
            context.set_tensor_address(name, address)
        context.profiler = recorder
        for _ in range(count + 1):
            context.execute_async_v3(self._cuda.stream)
            self._cuda.synchronize()
        times = {name: middle_mean(ms[1:] or ms) for name, ms in recorder.times.items()}
        inspector = self._engine.create_engine_inspector()
        return layer_times(
            inspector.get_engine_information(self._trt.LayerInformationFormat.JSON),
            times,
            self._model.proto,
        )

    def device_memory_bytes(self) -> int | None:
        """The engine itself (weights and kernels) and its scratch memory."""
        return int(self._engine.device_memory_size_v2) + self._size

    def close(self) -> None:
        self._launch = None
        self._context = self._engine = self._runtime = None
        self._cuda.close()

    def _bind(self, name: str) -> None:
        """Buffers of an input or output on both sides."""
        shape = tuple(self._engine.get_tensor_shape(name))
        if any(length < 0 for length in shape):
            raise EngineError(
                "engine-refused",
                f"tensorrt: the size of {name!r} {list(shape)} depends on the data; cut the graph before it",
            )
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        self._arrays[name] = np.zeros(shape, dtype)
        self._addresses[name] = self._cuda.allocate(self._arrays[name].nbytes)
        self._context.set_tensor_address(name, self._addresses[name])

    def _upload(self, feeds: Mapping[str, np.ndarray]) -> None:
        for name in self._inputs:
            array = self._arrays.get(name)
            if array is None:  # the builder dropped an input that nothing reads
                continue
            if feeds[name].shape != array.shape:
                raise EngineError(
                    "engine-run",
                    f"tensorrt: input {name!r} is {list(feeds[name].shape)}, the engine was built for {list(array.shape)}",
                )
            array[...] = feeds[name]
            self._cuda.upload(self._addresses[name], array)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise EngineError("engine-run", f"tensorrt cannot run the model: {self._logger.worst}")


def _set_precision(trt: Any, config: Any, precision: str) -> None:
    """Flags of version 10; nothing from 11 on, where the graph decides."""
    flags = trt.BuilderFlag
    if precision == "f32" and hasattr(flags, "TF32"):
        config.clear_flag(flags.TF32)
    if precision == "bf16" and not hasattr(flags, "BF16"):
        raise EngineError(
            "engine-precision",
            f"tensorrt {trt.__version__} runs bf16 only from a bfloat16 graph; use --precision f16",
        )
    for name in _FLAGS.get(precision, ()):
        if hasattr(flags, name):
            config.set_flag(getattr(flags, name))


def _timing_cache(trt: Any, config: Any, folder: Path | None) -> Path | None:
    """Give the builder what it measured before; the file to keep it in, None without a folder.

    Files differ by version; TensorRT itself refuses what another device measured, and then starts anew.
    """
    if folder is None:
        return None
    path = folder / f"tensorrt-{trt.__version__}.timing"
    known = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return path


def _logger(trt: Any) -> Any:
    """A logger that keeps the last error, for the message."""

    class Keeper(trt.ILogger):  # type: ignore[misc, name-defined]
        """Remembers what TensorRT complained of."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.worst = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT."""
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.worst = message

    return Keeper()


def _recorder(trt: Any) -> Any:
    """A profiler that collects milliseconds by layer."""

    class Recorder(trt.IProfiler):  # type: ignore[misc, name-defined]
        """times: layer -> milliseconds of each inference."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """Called by TensorRT."""
            self.times.setdefault(layer_name, []).append(ms)

    return Recorder()


ENGINE = TensorRt()
