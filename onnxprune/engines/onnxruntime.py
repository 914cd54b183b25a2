"""onnxruntime: the CPU provider, and CUDA and TensorRT where the installed build has them."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.engines.base import (
    Compiled,
    EngineOptions,
    LayerTime,
    Source,
    as_file,
    missing_package,
    open_model,
    refusal,
    require,
    require_precision,
)
from onnxprune.engines.cpu import vector_channels
from onnxprune.engines.kernels import kernel_times, map_kernels
from onnxprune.errors import EngineError

PROFILE_WARMUP = 3  # inferences in a profile that are not counted
DEPTHWISE_FLOOR = 4  # below this multiple onnxruntime leaves its blocked layout


@dataclass(frozen=True)
class OnnxRuntime:
    """One execution provider of onnxruntime.

    name: of the engine; provider: as onnxruntime spells it; install: command that brings it; multiples: dtype -> channels, {} = by the CPU's flags.
    """

    name: str
    provider: str
    install: str
    multiples: Mapping[str, int]
    library: str = "onnxruntime"

    def available(self) -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return missing_package(self.name, "onnxruntime", self.install)
        import onnxruntime

        if self.provider not in onnxruntime.get_available_providers():
            return f"engine {self.name} needs the {self.provider}, which this onnxruntime was built without: {self.install}"
        return None

    def version(self) -> str:
        if importlib.util.find_spec("onnxruntime") is None:
            return ""
        import onnxruntime

        return str(onnxruntime.__version__)

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        require(self)
        require_precision(self.name, options, *self.precisions)
        return OnnxRuntimeModel(self, source, options)

    @property
    def precisions(self) -> tuple[str, ...]:
        """What `Options.precision` may be: it says what the graph holds, onnxruntime converts nothing on the CPU."""
        return ("f32", "int8") if not self.multiples else ("f32", "f16", "int8")

    def limits(self) -> Mapping[str, str]:
        return {
            "ir_version": "reads IR versions up to 13 (release 1.31)",
            "precision": "runs the types that the graph holds; the CPU provider has no bfloat16 and converts float16 to float32",
            "layout": f"a regular convolution is blocked only where its input channels are >= 16 and a multiple of {DEPTHWISE_FLOOR}, a depthwise one on multiples of it",
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        return self.multiples.get(dtype, 8) if self.multiples else vector_channels()


class OnnxRuntimeModel(Compiled):
    """An onnxruntime session."""

    def __init__(self, engine: OnnxRuntime, source: Source, options: EngineOptions) -> None:
        self._engine, self._source, self._options = engine, source, options
        with as_file(source) as path:
            self._session = self._open(path, self._session_options())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return dict(zip(self.outputs, self._session.run(None, dict(feeds)), strict=False))
        except Exception as problem:  # onnxruntime's exceptions share no base class
            raise EngineError(
                "engine-run",
                f"{self._engine.name} cannot run the model: {str(problem).strip()[:300]}",
            ) from problem

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Kernel times of a session that profiles and takes the place of the first, so that there is never more than one in memory.

        Nodes are found through the optimized graph that it writes.
        """
        del self._session
        with (
            tempfile.TemporaryDirectory(prefix="onnxprune-") as folder,
            as_file(self._source) as path,
        ):
            settings = self._session_options()
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            settings.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            self._session = self._open(path, settings)
            for _ in range(PROFILE_WARMUP + count):
                self._session.run(None, dict(feeds))
            kernels = kernel_times(Path(self._session.end_profiling()), skip=PROFILE_WARMUP)
            optimized = open_model(Path(folder) / "optimized.onnx").proto
        return map_kernels(kernels, optimized, open_model(self._source).proto)

    def _session_options(self) -> Any:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self._options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 4
        settings.add_session_config_entry(
            "session.force_spinning_stop", "1"
        )  # idle threads must not disturb the other contender's turn
        level = onnxruntime.GraphOptimizationLevel
        settings.graph_optimization_level = {
            "off": level.ORT_DISABLE_ALL,
            "basic": level.ORT_ENABLE_BASIC,
            "extended": level.ORT_ENABLE_EXTENDED,
            "all": level.ORT_ENABLE_ALL,
        }[self._options.level]
        return settings

    def _open(self, path: Path, settings: Any) -> Any:
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(str(path), settings, providers=self._providers())
        except Exception as problem:
            raise refusal(self._engine.name, problem) from problem
        if self._engine.provider not in session.get_providers():
            raise EngineError(
                "engine-fallback",
                f"{self._engine.name}: onnxruntime fell back to {session.get_providers()[0]}; see that the GPU's libraries are found",
            )
        return session

    def _providers(self) -> list[Any]:
        """The provider and those that take what it cannot, with its own options."""
        if self._engine.provider != "TensorrtExecutionProvider":
            return [self._engine.provider]
        settings: dict[str, Any] = {
            "trt_fp16_enable": self._options.precision == "f16",
            "trt_int8_enable": self._options.precision == "int8",
        }
        if self._options.cache is not None:
            settings |= {
                "trt_engine_cache_enable": True,
                "trt_engine_cache_path": str(self._options.cache),
                "trt_timing_cache_enable": True,
            }
        return [("TensorrtExecutionProvider", settings), "CUDAExecutionProvider"]


CPU = OnnxRuntime("onnxruntime", "CPUExecutionProvider", "pip install onnxruntime", {})
CUDA = OnnxRuntime(
    "onnxruntime-cuda",
    "CUDAExecutionProvider",
    "pip install onnxruntime-gpu",
    {"f32": 4, "f16": 8, "int8": 32},
)
TENSORRT = OnnxRuntime(
    "onnxruntime-tensorrt",
    "TensorrtExecutionProvider",
    "pip install onnxruntime-gpu tensorrt",
    {"f32": 4, "f16": 8, "int8": 32},
)
