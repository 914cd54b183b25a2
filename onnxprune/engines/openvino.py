"""OpenVINO on the CPU.

By default OpenVINO computes in bfloat16 if the CPU supports it, which is fast but differs from
onnxruntime. Here float32 is the default and bfloat16 has to be requested.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

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
from onnxprune.engines.kernels import (
    CONTRACTIONS,
    assemble_layers,
    assign_nodes,
    interquartile_mean,
)
from onnxprune.errors import EngineError

BF16_CHANNELS = 16  # channels per block on AVX-512 and AMX
# of int8: the type between quantized operators
_HINTS = {"f32": "f32", "int8": "f32", "bf16": "bf16", "f16": "f16"}
_CONTRACTIONS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "GroupConvolution")
_CAPABILITIES = {"bf16": "BF16", "f16": "FP16"}


@dataclass(frozen=True)
class OpenVino:
    """The CPU plug-in of OpenVINO."""

    name: str = "openvino"
    install: str = "pip install openvino"
    library: str = "openvino"

    def available(self) -> str | None:
        """Return None if the package is installed, else the reason and the fix."""
        if importlib.util.find_spec("openvino") is None:
            return missing_package(self.name, "openvino", self.install)
        return None

    def version(self) -> str:
        """Return OpenVINO's version, "" if it is not installed."""
        return installed_version("openvino") if self.available() is None else ""

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        """Return a compiled model."""
        require(self)
        require_precision(self.name, options, *_HINTS)
        return OpenVinoModel(self.name, source, options)

    def limits(self) -> Mapping[str, str]:
        """Return limits of the precision."""
        return {
            "precision": (
                "bf16 and f16 need a CPU that has them; int8 needs a graph with QuantizeLinear "
                "and DequantizeLinear"
            )
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        """Return the channels per block of low-precision layouts."""
        return 1 if dtype == "f32" else BF16_CHANNELS


class OpenVinoModel(Compiled):
    """A compiled model with one inference request."""

    def __init__(self, name: str, source: Source, options: EngineOptions) -> None:
        self._name, self._source, self._options = name, source, options
        self.computes_here = options.threads == 1
        self._compiled = self._compile(profile=False)
        self._request = self._compiled.create_infer_request()
        # from the graph: OpenVINO may give an output several names
        self.outputs = tuple(o.name for o in open_model(source).proto.graph.output)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference."""
        try:
            self._request.infer(dict(feeds))
        except RuntimeError as problem:
            raise EngineError(
                "engine-run", f"{self._name} cannot run the model: {str(problem).strip()[:300]}"
            ) from problem
        # a copy, because the next inference overwrites the tensor
        return {name: np.array(self._request.get_tensor(name).data) for name in self.outputs}

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the time per executed operator, with nodes found by their original names."""
        # compiled again: counters slow a model down, so that the timed one has none
        compiled = self._compile(profile=True)
        times = _time_operators(compiled, feeds, count)
        origins = {
            op.get_friendly_name(): _find_origins(op)
            for op in compiled.get_runtime_model().get_ordered_ops()
        }
        return assemble_profile(times, origins, open_model(self._source).proto.graph.node)

    def _compile(self, *, profile: bool) -> Any:
        """Compile the model; EngineError if OpenVINO rejects it or the CPU lacks the precision."""
        import openvino

        core = openvino.Core()
        # without this check OpenVINO silently computes in float32
        capability = _CAPABILITIES.get(self._options.precision)
        if capability is not None:
            available = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            if capability not in available:
                raise EngineError(
                    "engine-precision",
                    f"{self._name}: this CPU has no {self._options.precision}; "
                    "pass --precision f32",
                )
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._options.precision],
            "INFERENCE_NUM_THREADS": self._options.threads,
            # one inference at a time, as the other engines
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
                    shapes = {name: list(shape) for name, shape in self._options.shapes.items()}
                    # a static shape allows OpenVINO to choose layouts
                    model.reshape(shapes)
                return core.compile_model(model, "CPU", settings)
            except RuntimeError as problem:
                raise refusal(self._name, _extract_reason(str(problem))) from problem


def _time_operators(
    compiled: Any, feeds: Mapping[str, np.ndarray], count: int
) -> dict[tuple[str, str], list[float]]:
    """Return (name, operator) -> milliseconds of `count` inferences after one for warm-up."""
    request = compiled.create_infer_request()
    # the first inference is warm-up
    request.infer(dict(feeds))
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(count):
        request.infer(dict(feeds))
        for kernel in request.get_profiling_info():
            # operators that were optimized out are listed with a time of 0
            if kernel.status == kernel.Status.EXECUTED:
                key = (kernel.node_name, kernel.node_type)
                times.setdefault(key, []).append(kernel.real_time.total_seconds() * 1e3)
    return times


def _extract_reason(text: str) -> str:
    """Return the informative line of an exception; others name places in OpenVINO's sources."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if not line.startswith(("Exception from", "Check '", "src/", "[ ")):
            return line
    return lines[-1] if lines else "no reason given"


def _find_origins(op: Any) -> list[str]:
    """Return the names of the graph nodes that an executed operator was made of."""
    info = op.get_rt_info()
    if "originalLayersNames" not in info:
        return []
    return list(info["originalLayersNames"].astype(str).split(","))


def assemble_profile(
    times: Mapping[tuple[str, str], Sequence[float]],
    origins: Mapping[str, Sequence[str]],
    nodes: Sequence[NodeProto],
) -> tuple[LayerTime, ...]:
    """Return the layers of a profile.

    Parameters
    ----------
    times
        (executed operator, its kind) -> milliseconds of each inference.
    origins
        Executed operator -> names of the nodes that it was made of.
    nodes
        Nodes of the graph.
    """
    # an operator names the nodes it was made of, or their outputs if they have no name
    known = {name: i for i, node in enumerate(nodes) for name in (node.name, *node.output) if name}
    anchors: dict[int, list[int]] = {}
    cores: dict[int, tuple[str, ...]] = {}
    for index, (name, op) in enumerate(times):
        anchors[index] = sorted({known[n] for n in origins.get(name, ()) if n in known})
        if op in _CONTRACTIONS:
            # activations and shortcuts are fused into contractions
            cores[index] = tuple(CONTRACTIONS)
        else:
            cores[index] = tuple(nodes[i].op_type for i in anchors[index])
    owners = assign_nodes(nodes, anchors, cores)
    kernels = ((name, op, interquartile_mean(ms)) for (name, op), ms in times.items())
    return assemble_layers(kernels, owners, nodes)


ENGINE = OpenVino()
