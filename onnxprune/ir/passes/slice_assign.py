"""Parts of a tensor that are written over: `x[:, a:b] = y` is exported as a scatter to every place of the part.

As numbers of places such a node holds all its axes; as the part between what stays in front of it and behind it, each axis goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from onnxprune.ir.edit import add_initializer, replace_nodes
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import EVALUATE

Range = tuple[int, int, int]  # start, end, length of the axis


def assign(model: Model, shapes: Shapes) -> bool:
    """Rewrite the main graph of a copy made by edit(); whether anything changed. Leaves Identity nodes."""
    graph = model.proto.graph
    if not any(node.op_type == "ScatterND" for node in graph.node):
        return False
    makers = {o: node for node in graph.node for o in node.output}
    inputs = {i.name for i in graph.input}
    weights = {name: weight for name, weight in model.weights.items() if name not in inputs}
    replaced: dict[int, list[NodeProto]] = {}
    for node in graph.node:
        ranges = _ranges(node, makers, weights, shapes)
        if ranges is not None and any(
            start == 0 and end == size > 1 for start, end, size in ranges
        ):
            replaced[id(node)] = _joined(
                model, node, {i: r for i, r in enumerate(ranges) if r[1] - r[0] < r[2]}
            )
    if replaced:
        replace_nodes(graph, [m for n in graph.node for m in replaced.get(id(n), [n])])
    return bool(replaced)


def _ranges(
    node: NodeProto, makers: Mapping[str, NodeProto], weights: Mapping[str, Any], shapes: Shapes
) -> list[Range] | None:
    """The part of each leading axis that a ScatterND writes to, where it writes to a box."""
    if (
        node.op_type != "ScatterND"
        or node.domain not in STANDARD_DOMAINS
        or len(node.input) != 3
        or attribute(node, "reduction", "none") != "none"
    ):
        return None
    data, places = shapes.shape(node.input[0]), shapes.shape(node.input[1])
    if (
        data is None
        or not places
        or places[-1] != len(places) - 1
        or not all(isinstance(d, int) for d in (*data[: places[-1]], *places))
        or 0 in places
    ):
        return None
    maker = makers.get(node.input[1])
    if (
        maker is not None
        and maker.op_type == "Concat"
        and attribute(maker, "axis", 0) % len(places) == len(places) - 1
    ):
        columns = [_value(name, makers, weights, shapes) for name in maker.input]
    else:
        whole = _value(node.input[1], makers, weights, shapes)
        columns = [] if whole is None else [*np.split(whole, len(places) - 1, -1)]
    if len(columns) != len(places) - 1 or any(
        c is None or c.shape != (*places[:-1], 1) for c in columns
    ):
        return None
    found = []
    for axis, (column, size) in enumerate(zip(columns, data, strict=False)):
        line = column[..., 0].min() + np.arange(places[axis])  # type: ignore[arg-type, index]
        if not (
            column[..., 0] == np.expand_dims(line, list(range(1, len(places) - 1 - axis)))  # type: ignore[index]
        ).all():  # type: ignore[index]
            return None
        start = int(line[0]) % size  # type: ignore[operator]
        found.append((start, start + len(line), size))
    return found if all(end <= size for _, end, size in found) else None  # type: ignore[operator, return-value]


def _value(
    name: str, makers: Mapping[str, NodeProto], weights: Mapping[str, Any], shapes: Shapes
) -> np.ndarray | None:
    """A constant, or one that is broadcast."""
    steps = []
    while (
        name in makers
        and makers[name].op_type in ("Expand", "Unsqueeze")
        and makers[name].domain in STANDARD_DOMAINS
        and shapes.value(name) is None
    ):
        steps.append(makers[name])
        name = makers[name].input[0]
    value = weights[name].array() if name in weights else shapes.value(name)
    for node in reversed(steps):
        told = [shapes.value(n) for n in node.input[1:]]
        if value is None or any(t is None for t in told):
            return None
        large = node.op_type == "Expand"
        value = (
            np.broadcast_to(value, np.broadcast_shapes(value.shape, tuple(told[0])))  # type: ignore[arg-type]
            if large
            else EVALUATE[node.op_type](node, value, *told)
        )  # type: ignore[arg-type]
    return value if value is not None and value.dtype.kind in "iu" else None


def _joined(model: Model, node: NodeProto, parts: Mapping[int, Range]) -> list[NodeProto]:
    """What stays in front of the part, the part and what stays behind it, an axis after the other."""
    made: list[NodeProto] = []
    out, source = node.output[0], node.input[0]
    if not parts:
        return [helper.make_node("Identity", [node.input[2]], [out], name=node.name)]

    def cut(name: str, axis: int, start: int, end: int) -> str:
        bounds = [
            add_initializer(model, f"{out}_{what}", np.array([v], np.int64))
            for what, v in (("start", start), ("end", end), ("axis", axis))
        ]
        made.append(
            helper.make_node(
                "Slice",
                [name, *bounds],
                [f"{out}.part{len(made)}"],
                name=f"{node.name or out}.part{len(made)}",
            )
        )
        return made[-1].output[0]

    layers = []
    for n, (axis, (start, end, size)) in enumerate(parts.items()):
        before = [cut(source, axis, 0, start)] if start else []
        behind = [cut(source, axis, end, size)] if end < size else []
        layers.append((axis, before, behind))
        source = cut(source, axis, start, end) if n < len(parts) - 1 else node.input[2]
    for axis, before, behind in reversed(layers):
        name = out if axis == layers[0][0] else f"{out}.joined{axis}"
        made.append(
            helper.make_node(
                "Concat",
                [*before, source, *behind],
                [name],
                name=node.name if name == out else f"{node.name or out}.joined{axis}",
                axis=axis,
            )
        )
        source = name
    return made
