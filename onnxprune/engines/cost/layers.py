"""Time single layers at any width, for allocating a latency budget.

The time of a layer over its width is a staircase, not a line. Single-node models are measured, and
the times are kept in a file because the same shapes recur in every model and run.
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
from onnxprune.files import read_text, write_json
from onnxprune.ir.io import Model, load
from onnxprune.ir.linear import WeightLayout

CACHE_FORMAT = 1
OPSET, IR_VERSION = 13, 8  # all engines read them
# short: a model has many layers, each timed at two widths
TIMED_MS, MIN_RUNS, MAX_RUNS = 15.0, 8, 200
# those that change the time; others, such as alpha, would split equal layers in the cache
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
    """Shapes of a contraction with a constant weight.

    Attributes
    ----------
    op
        "Conv", "ConvTranspose", "Gemm" or "MatMul".
    input, weight
        Shapes.
    attributes
        (name, value) pairs sorted by name.
    bias
        True if the layer has a bias.
    """

    op: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    bias: bool = False

    @property
    def group(self) -> int:
        """Groups of a convolution, 1 for other operators."""
        return int(dict(self.attributes).get("group", 1))

    @property
    def layout(self) -> WeightLayout:
        """Layout of the weight."""
        return WeightLayout(self.op, self.group, bool(dict(self.attributes).get("transB")))

    @property
    def depthwise(self) -> bool:
        """True for a convolution with a filter per input channel."""
        return (
            self.op == "Conv"
            and self.group > 1
            and self.group == self.input[1]
            and self.weight[1] == 1
        )

    def resized(self, inputs: int, outputs: int) -> LayerSpec:
        """Return the layer with other widths; a depthwise one gets as many groups as inputs.

        Raises
        ------
        EngineError
            The widths are not multiples of the groups.
        """
        # a depthwise layer has one group per channel
        group = inputs if self.depthwise else self.group
        if inputs % group or outputs % group or min(inputs, outputs) < 1:
            raise EngineError(
                "layer-width",
                f"{self.op} with {group} groups cannot have {inputs} input and {outputs} output "
                "channels; they must be multiples of the groups",
            )
        # the input's channels follow those of the weight
        shape = list(self.input)
        shape[self.channel_axis] = inputs
        weight = replace(self.layout, groups=group).resized(self.weight, inputs, outputs)
        attributes = tuple((k, group if k == "group" else v) for k, v in self.attributes)
        return replace(self, input=tuple(shape), weight=weight, attributes=attributes)

    @property
    def channel_axis(self) -> int:
        """Axis of the input that holds the channels."""
        if self.op == "MatMul":
            return -1
        return 0 if self.op == "Gemm" and dict(self.attributes).get("transA") else 1


def layer_spec(
    node: NodeProto, input_shape: tuple[int, ...], weight_shape: tuple[int, ...]
) -> LayerSpec:
    """Return the spec of a node with an activation as first and a weight as second input."""
    attributes = []
    for proto in sorted(node.attribute, key=lambda a: a.name):
        if proto.name not in _ATTRIBUTES:
            continue
        value = helper.get_attribute_value(proto)
        # plain and hashable values, for the cache's key and for comparison
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, list):
            value = tuple(value)
        attributes.append((proto.name, value))
    return LayerSpec(
        node.op_type,
        tuple(input_shape),
        tuple(weight_shape),
        tuple(attributes),
        len(node.input) > 2 and node.input[2] != "",
    )


def layer_model(spec: LayerSpec, seed: int = 0) -> Model:
    """Return a model of one node with random float32 weights."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal(spec.weight, np.float32)
    constants = [numpy_helper.from_array(weight, "w")]
    if spec.bias:
        bias = np.zeros(spec.layout.outputs(spec.weight), np.float32)
        constants.append(numpy_helper.from_array(bias, "b"))
    inputs = ["x", *(c.name for c in constants)]
    node = helper.make_node(spec.op, inputs, ["y"], name="layer", **dict(spec.attributes))
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, spec.input)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    opset = helper.make_opsetid("", OPSET)
    return load(helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION))


class LatencyCache:
    """Measured times in a JSON file, which several processes may share.

    If two of them write the same key, the last one wins.

    Parameters
    ----------
    folder
        Created when the first time is stored; None keeps the times in memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.path = Path(folder) / "latency.json" if folder is not None else None
        self._times: dict[str, float] = self._read()

    def get(self, key: str) -> float | None:
        """Return the milliseconds of a key, None if it was not measured."""
        return self._times.get(key)

    def put(self, key: str, time_ms: float) -> None:
        """Store a time and write the file."""
        # another process may have written since
        self._times = {**self._read(), **self._times, key: time_ms}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            self.path, {"format": CACHE_FORMAT, "times_ms": dict(sorted(self._times.items()))}
        )

    def _read(self) -> dict[str, float]:
        """Return the times in the file; {} if it is missing or invalid.

        Times can be measured again, so that an invalid file is no error.
        """
        if self.path is None:
            return {}
        try:
            data = json.loads(read_text(self.path))
            if data["format"] != CACHE_FORMAT:
                return {}
            return {str(k): float(v) for k, v in data["times_ms"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}


def cache_key(engine: Engine, spec: LayerSpec, options: EngineOptions) -> str:
    """Return all that the time of a layer depends on, as text."""
    # version and CPU too: the file outlives updates and may be on a shared disk
    facts: Mapping[str, Any] = {
        "engine": engine.name,
        "version": engine.version(),
        "cpu": describe_cpu(),
        "threads": options.threads,
        "precision": options.precision,
        "level": options.level,
        **asdict(spec),
    }
    # sorted, so that equal facts give equal text
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def time_layer(
    engine: Engine, spec: LayerSpec, options: EngineOptions, cache: LatencyCache | None = None
) -> float:
    """Return the milliseconds of one layer alone, from the cache if it has them.

    If the engine has a profile, it is the sum of the kernels that compute the layer, without layout
    changes at its borders, which neighbors in a network share; otherwise the least of many runs.
    """
    key = cache_key(engine, spec, options) if cache is not None else ""
    known = cache.get(key) if cache is not None else None
    # before the model is made: a full cache compiles nothing
    if known is not None:
        return known
    model = layer_model(spec)
    with engine.compile(model, options) as compiled:
        time_ms = _measure(compiled, random_feeds(static_inputs(model, {})))
    if cache is not None:
        cache.put(key, time_ms)
    return time_ms


def _measure(compiled: Compiled, feeds: Mapping[str, np.ndarray]) -> float:
    """Return the milliseconds of a compiled layer."""
    # the least of three: the first one initializes
    first = min(compiled.sample(feeds, 3))
    # a layer of microseconds needs a limit, one of seconds a least number
    runs = int(np.clip(TIMED_MS / max(first, 1e-6), MIN_RUNS, MAX_RUNS))
    # kernels without a node are layout changes
    kernels = [layer.time_ms for layer in compiled.profile(feeds, runs) if layer.nodes]
    return sum(kernels) if kernels else min(compiled.sample(feeds, runs))
