"""onnxruntime with its CPU, CUDA and TensorRT providers."""

from __future__ import annotations

import importlib.util
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
from onnxprune.scratch import Scratch

PROFILE_WARMUP = 3  # most inferences in a profile that are not counted
# of int8 on the CPU with VNNI, as benchmarks/integer_widths.py measures them
INT8_MULTIPLE, INT8_DEPTHWISE = 4, 16
DEPTHWISE_FLOOR = 4  # onnxruntime's blocked layout needs channels that are a multiple of this


@dataclass(frozen=True)
class OnnxRuntime:
    """One execution provider of onnxruntime.

    Attributes
    ----------
    name
        Name of the engine.
    provider
        onnxruntime's name of the provider.
    install
        Command that installs it.
    multiples
        dtype -> channel multiple; {} = by the CPU's vector width.
    library
        Module that is imported before memory is measured.
    """

    name: str
    provider: str
    install: str
    multiples: Mapping[str, int]
    library: str = "onnxruntime"

    def available(self) -> str | None:
        """Return None if the installed build has the provider, else the reason and the fix."""
        if importlib.util.find_spec("onnxruntime") is None:
            return missing_package(self.name, "onnxruntime", self.install)
        import onnxruntime

        if self.provider not in onnxruntime.get_available_providers():
            return (
                f"engine {self.name} needs the {self.provider}, "
                f"which the installed onnxruntime lacks: {self.install}"
            )
        return None

    def version(self) -> str:
        """Return onnxruntime's version, "" if it is not installed."""
        if importlib.util.find_spec("onnxruntime") is None:
            return ""
        import onnxruntime

        return str(onnxruntime.__version__)

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        """Return a session."""
        require(self)
        require_precision(self.name, options, *self.precisions)
        return OnnxRuntimeModel(self, source, options)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions of the provider; on the CPU they must be those of the graph."""
        # on the CPU float16 graphs are converted to float32, whose times say nothing about f16
        return ("f32", "f16", "int8") if self.multiples else ("f32", "int8")

    def limits(self) -> Mapping[str, str]:
        """Return limits of IR version, precision and layout."""
        return {
            "ir_version": "reads IR versions up to 13 (release 1.31)",
            "precision": (
                "runs the types of the graph; the CPU provider has no bfloat16 and converts "
                "float16 to float32"
            ),
            "layout": (
                "a regular convolution is blocked only if its input channels are at least 16 and "
                f"a multiple of {DEPTHWISE_FLOOR}, a depthwise one if they are a multiple of it"
            ),
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        """Return the channels per block or tensor-core tile."""
        if self.multiples:
            return self.multiples.get(dtype, 8)
        return INT8_MULTIPLE if dtype == "int8" else vector_channels()

    def depthwise_multiple(self, dtype: str = "f32") -> int:
        """Return the channels per block of depthwise convolutions."""
        if dtype == "int8" and not self.multiples:
            return INT8_DEPTHWISE
        return self.channel_multiple(dtype)


class OnnxRuntimeModel(Compiled):
    """An onnxruntime session."""

    def __init__(self, engine: OnnxRuntime, source: Source, options: EngineOptions) -> None:
        self._engine, self._source, self._options = engine, source, options
        # a session's pool holds one thread less than asked for; the caller is the other
        self.computes_here = engine.provider == "CPUExecutionProvider" and options.threads == 1
        with as_file(source) as path:
            self._session = self._open(path, self._make_options())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference."""
        try:
            return dict(zip(self.outputs, self._session.run(None, dict(feeds)), strict=True))
        except Exception as problem:  # onnxruntime's exceptions share no base class
            raise EngineError(
                "engine-run",
                f"{self._engine.name} cannot run the model: {str(problem).strip()[:300]}",
            ) from problem

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the time per kernel, with nodes found through the optimized graph.

        A session that profiles replaces the first one, so that only one is in memory.
        """
        del self._session
        with (
            Scratch() as folder,
            as_file(self._source) as path,
        ):
            settings = self._make_options()
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            # kernels have the names of the optimized graph, which must be that of this very session
            settings.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            self._session = self._open(path, settings)
            # few are counted only of models whose inferences take long
            skip = min(PROFILE_WARMUP, max(1, count // 5))
            for _ in range(skip + count):
                self._session.run(None, dict(feeds))
            # the profile is written when profiling ends
            kernels = kernel_times(Path(self._session.end_profiling()), skip=skip)
            optimized = open_model(Path(folder) / "optimized.onnx").proto
        return map_kernels(kernels, optimized, open_model(self._source).proto)

    def _make_options(self) -> Any:
        """Return onnxruntime's session options."""
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self._options.threads
        # nodes run one after another, so that kernel times add up
        settings.inter_op_num_threads = 1
        # warnings of a rejected graph are in the exception
        settings.log_severity_level = 4
        # idle threads must not disturb the other contenders' turns
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        level = onnxruntime.GraphOptimizationLevel
        settings.graph_optimization_level = {
            "off": level.ORT_DISABLE_ALL,
            "basic": level.ORT_ENABLE_BASIC,
            "extended": level.ORT_ENABLE_EXTENDED,
            "all": level.ORT_ENABLE_ALL,
        }[self._options.level]
        return settings

    def _open(self, path: Path, settings: Any) -> Any:
        """Return a session on the provider; EngineError if onnxruntime chooses another."""
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(
                str(path), settings, providers=self._choose_providers()
            )
        except Exception as problem:
            raise refusal(self._engine.name, problem) from problem
        # onnxruntime silently falls back to the CPU
        if self._engine.provider not in session.get_providers():
            raise EngineError(
                "engine-fallback",
                f"{self._engine.name}: onnxruntime fell back to {session.get_providers()[0]}; "
                "check that it finds the libraries of the GPU",
            )
        return session

    def _choose_providers(self) -> list[Any]:
        """Return the provider with its options, and the one for nodes that it lacks."""
        if self._engine.provider != "TensorrtExecutionProvider":
            return [self._engine.provider]
        # TensorRT is the only provider that converts the precision of a graph
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
        # nodes that TensorRT lacks run on the same device, not on the CPU
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
