"""Slice assignments as concatenations.

`x[:, a:b] = y` is exported as a ScatterND that lists every position of the slice. Such a node ties
all axes together; as a Concat of the parts before, inside and after the slice, each axis passes
through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from onnx import NodeProto, helper

from onnxprune.ir.edit import add_initializer, replace_nodes
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import EVALUATE, is_static
from onnxprune.ir.weights import Weight


class _Span(NamedTuple):
    """Positions [start, end) of an axis of length `size`."""

    start: int
    end: int
    size: int

    def is_full(self) -> bool:
        return self.start == 0 and self.end == self.size


def rewrite_slice_assignments(model: EditableModel, shapes: Shapes) -> bool:
    """Rewrite slice assignments in the main graph; return whether there were any.

    Leaves Identity nodes.
    """
    graph = model.proto.graph
    if not any(node.op_type == "ScatterND" for node in graph.node):
        return False
    rewriter = _Rewriter(model, shapes)
    replaced: dict[int, list[NodeProto]] = {}
    for node in graph.node:
        spans = rewriter.match(node)
        # without a full axis longer than 1 the scatter writes single positions, which is kept
        if spans is not None and any(s.is_full() and s.size > 1 for s in spans):
            partial = {i: s for i, s in enumerate(spans) if s.end - s.start < s.size}
            replaced[id(node)] = rewriter.concatenate(node, partial)
    if replaced:
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes += replaced.get(id(node), [node])
        replace_nodes(graph, nodes)
    return bool(replaced)


class _Rewriter:
    """Matching and rewriting of the ScatterND nodes of a model."""

    def __init__(self, model: EditableModel, shapes: Shapes) -> None:
        self.model = model
        self.shapes = shapes
        self.producers = {o: node for node in model.proto.graph.node for o in node.output}
        # an input of the name may override an initializer
        inputs = {i.name for i in model.proto.graph.input}
        self.weights: Mapping[str, Weight] = {
            name: weight for name, weight in model.weights.items() if name not in inputs
        }

    def match(self, node: NodeProto) -> list[_Span] | None:
        """Return the span of each leading axis that a ScatterND writes; None if not a box."""
        if node.op_type != "ScatterND" or node.domain not in STANDARD_DOMAINS:
            return None
        # a reduction combines old and new values, which a Concat cannot
        if len(node.input) != 3 or attribute(node, "reduction", "none") != "none":
            return None
        data, indices = self.shapes.shape(node.input[0]), self.shapes.shape(node.input[1])
        # the indices have one axis per leading axis of the data, and one for the coordinates
        if data is None or not indices or indices[-1] != len(indices) - 1:
            return None
        sizes = data[: len(indices) - 1]
        if not is_static(sizes) or not is_static(indices) or 0 in indices:
            return None
        # the coordinate of each axis must run in steps of 1 along its own axis of the indices
        columns = self.coordinates(node.input[1], len(indices) - 1)
        if columns is None or any(c.shape != (*indices[:-1], 1) for c in columns):
            return None
        spans = []
        for axis, (column, size) in enumerate(zip(columns, sizes, strict=False)):
            positions = column[..., 0]
            line = positions.min() + np.arange(indices[axis])
            later_axes = list(range(1, len(indices) - 1 - axis))
            if not (positions == np.expand_dims(line, later_axes)).all():
                return None
            # negative positions count from the end
            start = int(line[0]) % size
            spans.append(_Span(start, start + len(line), size))
        return spans if all(s.end <= s.size for s in spans) else None

    def coordinates(self, name: str, count: int) -> list[np.ndarray] | None:
        """Return the index tensor as one array per coordinate, last axis of length 1."""
        producer = self.producers.get(name)
        # exporters join one broadcast range per coordinate, which is cheaper than the whole tensor
        if (
            producer is not None
            and producer.op_type == "Concat"
            and attribute(producer, "axis", 0) % (count + 1) == count
        ):
            columns = []
            for part in producer.input:
                value = self.constant(part)
                if value is None:
                    return None
                columns.append(value)
        else:
            value = self.constant(name)
            columns = [] if value is None else [*np.split(value, count, -1)]
        return columns if len(columns) == count else None

    def constant(self, name: str) -> np.ndarray | None:
        """Return the value of an integer constant, possibly broadcast by nodes; None otherwise."""
        chain = []
        while (
            name in self.producers
            and self.producers[name].op_type in ("Expand", "Unsqueeze")
            and self.producers[name].domain in STANDARD_DOMAINS
            and self.shapes.value(name) is None
        ):
            chain.append(self.producers[name])
            name = self.producers[name].input[0]
        value = self.weights[name].array() if name in self.weights else self.shapes.value(name)
        for node in reversed(chain):
            operands = []
            for operand in node.input[1:]:
                known = self.shapes.value(operand)
                if known is None:
                    return None
                operands.append(known)
            if value is None:
                return None
            if node.op_type == "Expand":
                # a view; the table's Expand is limited to small results
                shape = np.broadcast_shapes(value.shape, tuple(operands[0]))
                value = np.broadcast_to(value, shape)
            else:
                value = EVALUATE[node.op_type](node, value, *operands)
        return value if value is not None and value.dtype.kind in "iu" else None

    def concatenate(self, node: NodeProto, spans: Mapping[int, _Span]) -> list[NodeProto]:
        """Return nodes that join the parts before, inside and after the slice, axis by axis."""
        out, source = node.output[0], node.input[0]
        # nothing of the data is left: the update is the result
        if not spans:
            return [helper.make_node("Identity", [node.input[2]], [out], name=node.name)]
        nodes: list[NodeProto] = []

        def cut(name: str, axis: int, start: int, end: int) -> str:
            bounds = [
                add_initializer(self.model, f"{out}_{what}", np.array([v], np.int64))
                for what, v in (("start", start), ("end", end), ("axis", axis))
            ]
            part = f"part{len(nodes)}"
            nodes.append(
                helper.make_node(
                    "Slice",
                    [name, *bounds],
                    [f"{out}.{part}"],
                    name=f"{node.name or out}.{part}",
                )
            )
            return nodes[-1].output[0]

        # from the outermost axis inwards: what surrounds the slice along each axis
        layers = []
        for n, (axis, (start, end, size)) in enumerate(spans.items()):
            before = [cut(source, axis, 0, start)] if start else []
            after = [cut(source, axis, end, size)] if end < size else []
            layers.append((axis, before, after))
            source = cut(source, axis, start, end) if n < len(spans) - 1 else node.input[2]
        # from the innermost slice outwards
        for axis, before, after in reversed(layers):
            outermost = axis == layers[0][0]
            name = out if outermost else f"{out}.joined{axis}"
            node_name = node.name if outermost else f"{node.name or out}.joined{axis}"
            nodes.append(
                helper.make_node(
                    "Concat", [*before, source, *after], [name], name=node_name, axis=axis
                )
            )
            source = name
        return nodes
