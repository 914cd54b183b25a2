"""Latency of a device that is reached only by hand, from a table of layer times.

`handoff --layers` writes a bundle that times each layer of a model at several widths, and the model
itself, as it is and at several uniform widths. A model's latency is the sum of its layers, mapped
to that of whole models by linear interpolation between the latter: a sum alone omits what happens
outside of contractions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.engines.base import (
    EngineOptions,
    LayerTime,
    Source,
    fix_shapes,
    open_model,
)
from onnxprune.engines.cost.computed import ComputedModel
from onnxprune.engines.cost.contractions import tensor_shapes
from onnxprune.engines.cost.layers import LayerSpec, layer_spec
from onnxprune.errors import DataError, EngineError, UsageError
from onnxprune.files import read_text
from onnxprune.ir.io import Model
from onnxprune.ir.linear import LINEAR_OPS
from onnxprune.ir.nodes import label
from onnxprune.ir.passes.canonicalize import canonicalize

PREFIX, FORMAT, SUFFIX = "table:", 1, ".latency.json"
Widths = tuple[int, int]
"""(input channels, output channels)"""


@dataclass(frozen=True)
class Anchor:
    """A whole model that was timed.

    Attributes
    ----------
    name
        Such as "75%".
    sum_ms
        Sum of the times of its layers alone.
    whole_ms
        Its time.
    """

    name: str
    sum_ms: float
    whole_ms: float


@dataclass(frozen=True)
class LatencyTable:
    """Times of layers and models on one device.

    Attributes
    ----------
    times
        Layer without its widths -> widths -> milliseconds.
    anchors
        Whole models, by ascending sum; the last is the original.
    multiple
        Channels that widths are rounded up to.
    facts
        Device, runtime, version, precision, threads and hash of the model.
    """

    times: Mapping[str, Mapping[Widths, float]]
    anchors: tuple[Anchor, ...]
    multiple: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def time_layer(self, spec: LayerSpec) -> float:
        """Return the milliseconds of a layer alone, interpolated between the timed widths.

        Raises
        ------
        EngineError
            The table has no layer of this shape.
        """
        known = self.times.get(describe_family(spec))
        if not known:
            raise EngineError(
                "table-lacks",
                f"the table of {self.facts.get('host', 'the device')} has no {spec.op} with weight "
                f"{list(spec.weight)} on an input {list(spec.input)}: write a bundle of this model "
                "with onnxprune handoff --layers",
            )
        widths = read_widths(spec)
        # a width between two multiples takes as long as the upper one
        inputs, outputs = (math.ceil(w / self.multiple) * self.multiple for w in widths)
        columns = sorted({w for w, _ in known})
        rows = [
            _interpolate({o: known[c, o] for i, o in known if i == c}, outputs) for c in columns
        ]
        return _interpolate(dict(zip(columns, rows, strict=True)), inputs)

    def predict(self, sum_ms: float) -> float:
        """Return the milliseconds of a whole model with this sum of its layers."""
        return _predict(self.anchors, sum_ms)

    @cached_property
    def sum_error(self) -> float:
        """Largest relative error of the plain sum, against the whole models."""
        return max(abs(a.sum_ms / a.whole_ms - 1) for a in self.anchors)

    @cached_property
    def error(self) -> float:
        """Largest relative error of a prediction for a whole model from the other ones.

        NaN with fewer than three, of which none lies between others.
        """
        errors = []
        for index in range(1, len(self.anchors) - 1):
            others = self.anchors[:index] + self.anchors[index + 1 :]
            anchor = self.anchors[index]
            errors.append(abs(_predict(others, anchor.sum_ms) / anchor.whole_ms - 1))
        return max(errors, default=float("nan"))

    def describe_error(self) -> str:
        """Return how far sums and predictions are from the whole models."""
        text = (
            f"the sum of the layers differs from whole models by up to {self.sum_error:.0%}; it is "
            f"calibrated by {len(self.anchors)} of them"
        )
        # NaN is unequal to itself
        if self.error == self.error:
            text += f", which predicts each from the others with an error of {self.error:.1%}"
        return text


def _predict(anchors: Sequence[Anchor], sum_ms: float) -> float:
    """Return the whole time at a sum: linear between anchors, in proportion beyond them."""
    sums = np.array([a.sum_ms for a in anchors])
    wholes = np.array([a.whole_ms for a in anchors])
    if sum_ms >= sums[-1]:
        return float(wholes[-1] * sum_ms / sums[-1])
    if sum_ms <= sums[0]:
        return float(wholes[0] * sum_ms / sums[0])
    return float(np.interp(sum_ms, sums, wholes))


def _interpolate(times: Mapping[int, float], width: int) -> float:
    """Return the time at a width: linear between widths, that of the nearest one beyond them."""
    widths = sorted(times)
    return float(np.interp(width, widths, [times[w] for w in widths]))


def read_widths(spec: LayerSpec) -> Widths:
    """Return the input and output channels of a layer's weight; those of one group's inputs."""
    first, last = spec.layout.axes(len(spec.weight))
    return spec.weight[first], spec.weight[last]


def describe_family(spec: LayerSpec) -> str:
    """Return a layer without what pruning changes: its widths and its bias."""
    facts = asdict(spec)
    first, last = spec.layout.axes(len(spec.weight))
    weight, shape = list(spec.weight), list(spec.input)
    weight[first] = weight[last] = 0
    shape[spec.channel_axis] = 0
    attributes = [
        [key, "depthwise" if key == "group" and spec.depthwise else value]
        for key, value in facts["attributes"]
    ]
    # a repair adds biases, which take no time of their own
    family = [spec.op, shape, weight, attributes]
    return json.dumps(family, separators=(",", ":"))


def list_specs(model: Model) -> dict[str, LayerSpec]:
    """Return node -> spec of the contractions with constant weights, of a canonical graph.

    Raises
    ------
    EngineError
        The shape of an input cannot be inferred: without that layer a sum would be too small.
    """
    known = tensor_shapes(model)
    specs = {}
    for node in model.proto.graph.node:
        if node.op_type not in LINEAR_OPS or node.input[1] not in model.weights:
            continue
        if node.input[0] not in known:
            raise EngineError(
                "table-shapes",
                f"the shape of {node.input[0]!r} at node {label(node)!r} cannot be inferred; pass "
                "the shapes of the model's inputs (--shape NAME:1,...)",
            )
        weight = model.weights[node.input[1]].shape
        specs[label(node)] = layer_spec(node, known[node.input[0]], weight)
    return specs


def to_spec(data: Mapping[str, Any]) -> LayerSpec:
    """Return the spec that `asdict` and JSON made plain."""
    attributes = [(k, tuple(v) if isinstance(v, list) else v) for k, v in data["attributes"]]
    return LayerSpec(
        str(data["op"]),
        tuple(data["input"]),
        tuple(data["weight"]),
        tuple(attributes),
        bool(data["bias"]),
    )


def make_table(
    times: Iterable[tuple[LayerSpec, float]],
    models: Mapping[str, tuple[Sequence[LayerSpec], float]],
    multiple: int,
    facts: Mapping[str, Any],
) -> LatencyTable:
    """Return a table.

    Parameters
    ----------
    times
        (layer, milliseconds) pairs.
    models
        Name -> (its layers, milliseconds); the original among them.
    """
    grid: dict[str, dict[Widths, float]] = {}
    for spec, time_ms in times:
        grid.setdefault(describe_family(spec), {})[read_widths(spec)] = time_ms
    table = LatencyTable(grid, (), multiple, facts)
    anchors = [
        Anchor(name, sum(map(table.time_layer, specs)), whole_ms)
        for name, (specs, whole_ms) in models.items()
    ]
    anchors.sort(key=lambda a: a.sum_ms)
    return replace(table, anchors=tuple(anchors))


def to_plain(table: LatencyTable) -> dict[str, Any]:
    """Return a table as JSON data."""
    rows = [
        {"layer": family, "widths": list(widths), "ms": time_ms}
        for family, grid in table.times.items()
        for widths, time_ms in sorted(grid.items())
    ]
    return {
        "format": FORMAT,
        **table.facts,
        "multiple": table.multiple,
        "sum_error": round(table.sum_error, 4),
        "models": [asdict(anchor) for anchor in table.anchors],
        "layers": rows,
    }


def read_table(path: Path) -> LatencyTable:
    """Return the table of a file; DataError if it is missing or invalid."""
    try:
        data = json.loads(read_text(path))
        if data["format"] != FORMAT:
            raise ValueError(f"format is {data['format']!r}, {FORMAT} is supported")
        grid: dict[str, dict[Widths, float]] = {}
        for row in data["layers"]:
            inputs, outputs = (int(w) for w in row["widths"])
            grid.setdefault(str(row["layer"]), {})[inputs, outputs] = float(row["ms"])
        anchors = tuple(
            Anchor(str(m["name"]), float(m["sum_ms"]), float(m["whole_ms"])) for m in data["models"]
        )
        if not anchors or not all(a.sum_ms > 0 and a.whole_ms > 0 for a in anchors):
            raise ValueError("a model has no time")
        facts = {k: v for k, v in data.items() if k not in ("layers", "models", "multiple")}
        return LatencyTable(grid, anchors, int(data["multiple"]), facts)
    except OSError as problem:
        raise DataError(
            "table-missing",
            f"{path} cannot be read: {problem.strerror}; write it with "
            "onnxprune bench --collect FOLDER",
        ) from problem
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise DataError("table-invalid", f"{path} is no table of latencies: {problem}") from problem


@dataclass(frozen=True)
class TableEngine:
    """A table as an engine: nothing runs."""

    path: Path
    install: str = "onnxprune handoff MODEL --to remote --layers, then bench --collect"

    @property
    def name(self) -> str:
        """Name of the engine."""
        return f"{PREFIX}{self.path}"

    @cached_property
    def table(self) -> LatencyTable:
        """The table; DataError if the file is missing or invalid."""
        return read_table(self.path)

    def available(self) -> str | None:
        """Return None if the table can be read, else the reason."""
        try:
            _ = self.table
        except DataError as problem:
            return f"engine {self.name}: {problem.message}"
        return None

    def version(self) -> str:
        """Return device, runtime and precision of the table."""
        if self.available() is not None:
            return ""
        facts = self.table.facts
        return " ".join(str(facts.get(k, "")) for k in ("runtime", "version", "host", "precision"))

    def compile(self, source: Source, options: EngineOptions) -> TableModel:
        """Return the model with its predicted time.

        Raises
        ------
        EngineError
            The table has another precision or number of threads, or lacks a layer.
        """
        facts = self.table.facts
        for key in ("precision", "threads"):
            given, measured = getattr(options, key), facts.get(key, getattr(options, key))
            if given != measured:
                flag = "bench-threads" if key == "threads" else key
                raise EngineError(
                    "table-options",
                    f"{self.path} was measured with --{flag} {measured}, not {given}: pass that, "
                    "or measure again",
                )
        return TableModel(open_model(source), self.table, options)

    def limits(self) -> Mapping[str, str]:
        """Return what the figures are."""
        return {"model": "predicted from layers that were timed alone on another machine"}

    def channel_multiple(self, dtype: str = "f32") -> int:
        """Return the multiple of the table's widths."""
        return self.table.multiple if self.available() is None else 1


class TableModel(ComputedModel):
    """A graph whose time is predicted from a table."""

    def __init__(self, model: Model, table: LatencyTable, options: EngineOptions) -> None:
        super().__init__(model)
        self._table = table
        # static shapes first: only they let canonicalize fold the arithmetic on shapes
        self._graph = canonicalize(fix_shapes(model, options.shapes))
        specs = list_specs(self._graph)
        self._times = {name: table.time_layer(spec) for name, spec in specs.items()}
        self._predicted = table.predict(sum(self._times.values()))

    @property
    def latency_ms(self) -> float:
        """That which the table predicts."""
        return self._predicted

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the time of each contraction alone."""
        nodes = {label(node): node for node in self._graph.proto.graph.node}
        return tuple(
            LayerTime(
                name,
                nodes[name].op_type,
                time_ms,
                (name,),
                (nodes[name].output[0],),
                nodes[name].output[0],
            )
            for name, time_ms in self._times.items()
        )

    def notes(self) -> tuple[str, ...]:
        """Return the error of the table."""
        return (self._table.describe_error(),)


def parse_table_name(name: str) -> TableEngine:
    """Return the engine of table:FILE; UsageError without a file."""
    path = name.removeprefix(PREFIX)
    if not path:
        raise UsageError("table-file", f"{name!r} names no file: write {PREFIX}NAME{SUFFIX}")
    return TableEngine(Path(path))
