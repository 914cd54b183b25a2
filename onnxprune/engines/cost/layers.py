"""Timing one layer alone, at any width: what a budget on latency is allocated by.

A layer's time over its width is a staircase, not a line; the table is filled by measuring single-node models and is kept in a file,
because the same shapes come back in every model and every run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.engines.base import Compiled, Engine, EngineOptions, random_feeds, static_inputs
from onnxprune.engines.cpu import describe_cpu
from onnxprune.errors import EngineError
from onnxprune.files import write_json
from onnxprune.ir.io import Model, load

CACHE_FORMAT = 1
OPSET, IR_VERSION = 13, 8  # every engine here reads them
TIMED_MS, MIN_RUNS, MAX_RUNS = 15.0, 8, 200
_ATTRIBUTES = (
    "auto_pad",
    "dilations",
    "group",
    "kernel_shape",
    "output_padding",
    "pads",
    "strides",
    "transA",
    "transB",
)


@dataclass(frozen=True)
class LayerSpec:
    """A contraction with a constant weight, by its shapes.

    op: Conv, ConvTranspose, Gemm or MatMul; input, weight: shapes; attributes: (name, value) in order of name; bias: whether it has one.
    """

    op: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    bias: bool = False

    @property
    def group(self) -> int:
        """Of a convolution."""
        return int(dict(self.attributes).get("group", 1))

    @property
    def depthwise(self) -> bool:
        """Every channel has a filter of its own."""
        return (
            self.op == "Conv"
            and self.group > 1
            and self.group == self.input[1]
            and self.weight[1] == 1
        )

    def resized(self, inputs: int, outputs: int) -> LayerSpec:
        """The same layer with that many input and output channels; a depthwise one gets as many groups as inputs.

        Raises
        ------
        EngineError
            The widths do not divide by the groups.
        """
        group = inputs if self.depthwise else self.group
        if inputs % group or outputs % group or min(inputs, outputs) < 1:
            raise EngineError(
                "layer-width",
                f"{self.op} with {group} groups cannot have {inputs} input and {outputs} output channels",
            )
        channel = (
            1
            if self.op in ("Conv", "ConvTranspose")
            or (self.op == "Gemm" and not dict(self.attributes).get("transA"))
            else 0
            if self.op == "Gemm"
            else -1
        )
        shape = list(self.input)
        shape[channel] = inputs
        rest = self.weight[2:]
        if self.op == "Conv":
            weight = (outputs, inputs // group, *rest)
        elif self.op == "ConvTranspose":
            weight = (inputs, outputs // group, *rest)
        elif self.op == "Gemm" and dict(self.attributes).get("transB"):
            weight = (outputs, inputs)
        else:
            weight = (*self.weight[:-2], inputs, outputs)
        attributes = tuple((k, group if k == "group" else v) for k, v in self.attributes)
        return replace(self, input=tuple(shape), weight=weight, attributes=attributes)


def layer_spec(
    node: NodeProto, input_shape: tuple[int, ...], weight_shape: tuple[int, ...]
) -> LayerSpec:
    """The spec of a node whose first input is the activation and second the weight."""
    attributes = {
        a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in _ATTRIBUTES
    }
    plain = {
        k: v.decode() if isinstance(v, bytes) else tuple(v) if isinstance(v, list) else v
        for k, v in attributes.items()
    }
    return LayerSpec(
        node.op_type,
        tuple(input_shape),
        tuple(weight_shape),
        tuple(sorted(plain.items())),
        len(node.input) > 2 and node.input[2] != "",
    )


def layer_model(spec: LayerSpec, seed: int = 0) -> Model:
    """A model of that one node with random float32 weights."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal(spec.weight, np.float32)
    constants = [numpy_helper.from_array(weight, "w")]
    if spec.bias:
        width = (
            weight.shape[1] * spec.group
            if spec.op == "ConvTranspose"
            else weight.shape[-1]
            if _columns(spec)
            else weight.shape[0]
        )
        constants.append(numpy_helper.from_array(np.zeros(width, np.float32), "b"))
    node = helper.make_node(
        spec.op, ["x", *(c.name for c in constants)], ["y"], name="layer", **dict(spec.attributes)
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, spec.input)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    return load(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
    )


def _columns(spec: LayerSpec) -> bool:
    """The weight's last axis makes the outputs."""
    return spec.op == "MatMul" or (spec.op == "Gemm" and not dict(spec.attributes).get("transB"))


class LatencyCache:
    """Measured times in a JSON file; several processes may share it, the last writer of a key wins.

    Parameters
    ----------
    folder
        Made when the first time is stored; None keeps the times in memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.path = Path(folder) / "latency.json" if folder is not None else None
        self._times: dict[str, float] = self._read()

    def get(self, key: str) -> float | None:
        """Milliseconds, None where not measured yet."""
        return self._times.get(key)

    def put(self, key: str, time_ms: float) -> None:
        """Store and write."""
        self._times = {**self._read(), **self._times, key: time_ms}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            self.path, {"format": CACHE_FORMAT, "times_ms": dict(sorted(self._times.items()))}
        )

    def _read(self) -> dict[str, float]:
        """What the file holds; a file that is not there or of another format counts as empty, times can be measured again."""
        if self.path is None:
            return {}
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if data["format"] != CACHE_FORMAT:
                return {}
            return {str(k): float(v) for k, v in data["times_ms"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def cache_key(engine: Engine, spec: LayerSpec, options: EngineOptions) -> str:
    """Everything a layer's time depends on."""
    facts: Mapping[str, Any] = {
        "engine": engine.name,
        "version": engine.version(),
        "cpu": describe_cpu(),
        "threads": options.threads,
        "precision": options.precision,
        "level": options.level,
        **asdict(spec),
    }
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def time_layer(
    engine: Engine, spec: LayerSpec, options: EngineOptions, cache: LatencyCache | None = None
) -> float:
    """Milliseconds of one layer alone.

    Where the engine has a profile, its kernels that compute the layer count and layout changes at the border do not: inside a network
    the neighbors share the layout. Elsewhere it is the least of many runs. From `cache` where it holds the layer.
    """
    key = cache_key(engine, spec, options) if cache is not None else ""
    if cache is not None and (known := cache.get(key)) is not None:
        return known
    model = layer_model(spec)
    with engine.compile(model, options) as compiled:
        time_ms = _time(compiled, random_feeds(static_inputs(model, {})))
    if cache is not None:
        cache.put(key, time_ms)
    return time_ms


def _time(compiled: Compiled, feeds: Mapping[str, np.ndarray]) -> float:
    first = min(compiled.sample(feeds, 3))
    runs = int(np.clip(TIMED_MS / max(first, 1e-6), MIN_RUNS, MAX_RUNS))
    kernels = [layer.time_ms for layer in compiled.profile(feeds, runs) if layer.nodes]
    return sum(kernels) if kernels else min(compiled.sample(feeds, runs))
