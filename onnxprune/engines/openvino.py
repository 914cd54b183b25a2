"""OpenVINO on the CPU.

Left to itself it computes in bfloat16 where the CPU can: fast, and not equal to onnxruntime. Float32 is pinned here; bfloat16 is asked for by name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.engines.base import (
    Compiled,
    EngineOptions,
    LayerTime,
    Source,
    as_file,
    installed_version,
    missing_package,
    open_model,
    refusal,
    require,
    require_precision,
)
from onnxprune.engines.kernels import CONTRACTIONS, layer_time, middle_mean, share
from onnxprune.errors import EngineError

BF16_CHANNELS = 16  # its blocked layouts on AVX-512 and AMX
_HINTS = {"f32": "f32", "int8": "f32", "bf16": "bf16", "f16": "f16"}
_CONTRACTIONS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "GroupConvolution")
_NEEDS = {"bf16": "BF16", "f16": "FP16"}


@dataclass(frozen=True)
class OpenVino:
    """The CPU plugin of OpenVINO."""

    name: str = "openvino"
    install: str = "pip install openvino"
    library: str = "openvino"

    def available(self) -> str | None:
        return (
            missing_package(self.name, "openvino", self.install)
            if importlib.util.find_spec("openvino") is None
            else None
        )

    def version(self) -> str:
        return installed_version("openvino") if self.available() is None else ""

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        require(self)
        require_precision(self.name, options, *_HINTS)
        return OpenVinoModel(self.name, source, options)

    def limits(self) -> Mapping[str, str]:
        return {
            "precision": "bf16 and f16 only where the CPU has them; int8 is a graph with QuantizeLinear and DequantizeLinear"
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        return 1 if dtype == "f32" else BF16_CHANNELS


class OpenVinoModel(Compiled):
    """A compiled model with one inference request."""

    def __init__(self, name: str, source: Source, options: EngineOptions) -> None:
        self._name, self._source, self._options = name, source, options
        self._compiled = self._compile(profile=False)
        self._request = self._compiled.create_infer_request()
        self.outputs = tuple(o.name for o in open_model(source).proto.graph.output)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            self._request.infer(dict(feeds))
        except RuntimeError as problem:
            raise EngineError(
                "engine-run", f"{self._name} cannot run the model: {str(problem).strip()[:300]}"
            ) from problem
        return {name: np.array(self._request.get_tensor(name).data) for name in self.outputs}

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        compiled = self._compile(profile=True)
        request = compiled.create_infer_request()
        times: dict[tuple[str, str], list[float]] = {}
        for index in range(count + 1):
            request.infer(dict(feeds))
            for kernel in request.get_profiling_info() if index else ():
                if kernel.status == kernel.Status.EXECUTED:
                    times.setdefault((kernel.node_name, kernel.node_type), []).append(
                        kernel.real_time.total_seconds() * 1e3
                    )
        nodes = open_model(self._source).proto.graph.node
        known = {
            name: i for i, node in enumerate(nodes) for name in (node.name, *node.output) if name
        }
        origins = {
            op.get_friendly_name(): _origins(op, known)
            for op in compiled.get_runtime_model().get_ordered_ops()
        }
        kernels = list(times)
        anchors = {index: origins.get(name, []) for index, (name, _) in enumerate(kernels)}
        cores = {
            index: tuple(CONTRACTIONS)
            if kernels[index][1] in _CONTRACTIONS
            else tuple(nodes[i].op_type for i in own)
            for index, own in anchors.items()
        }
        owners = share(nodes, anchors, cores)
        return tuple(
            layer_time(
                name,
                op,
                middle_mean(times[name, op]),
                [nodes[i] for i in sorted(i for i, owner in owners.items() if owner == index)],
            )
            for index, (name, op) in enumerate(kernels)
        )

    def _compile(self, *, profile: bool) -> Any:
        import openvino

        core = openvino.Core()
        needed = _NEEDS.get(self._options.precision)
        if needed is not None and needed not in core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise EngineError(
                "engine-precision",
                f"{self._name}: this CPU has no {self._options.precision}; use --precision f32",
            )
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._options.precision],
            "INFERENCE_NUM_THREADS": self._options.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "PERF_COUNT": profile,
        }
        if self._options.cache is not None:
            settings["CACHE_DIR"] = str(self._options.cache)
        with as_file(self._source) as path:
            try:
                model = core.read_model(str(path))
                if self._options.shapes:
                    model.reshape(
                        {name: list(shape) for name, shape in self._options.shapes.items()}
                    )
                return core.compile_model(model, "CPU", settings)
            except RuntimeError as problem:
                raise refusal(self._name, _reason(str(problem))) from problem


def _reason(text: str) -> str:
    """The line of an exception that says something; the others say where in OpenVINO's sources it was raised."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next(
        (
            line
            for line in lines
            if not line.startswith(("Exception from", "Check '", "src/", "[ "))
        ),
        lines[-1] if lines else "no reason given",
    )


def _origins(op: Any, known: Mapping[str, int]) -> list[int]:
    """Indices of graph nodes that an executed operator says it came from; names there are node names, or tensors where a node has none."""
    info = op.get_rt_info()
    names = (
        info["originalLayersNames"].astype(str).split(",") if "originalLayersNames" in info else []
    )
    return sorted({known[name] for name in names if name in known})


ENGINE = OpenVino()
