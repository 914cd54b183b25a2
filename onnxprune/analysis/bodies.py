"""If, Loop and Scan: channels flow into their bodies, by states from pass to pass, and out again.

One pass through a body is enough: a state is tied to what it becomes after the body was walked, and ties hold whatever comes before or after them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from onnx import GraphProto

from onnxprune.analysis.apply import Misfit
from onnxprune.analysis.causes import Axis
from onnxprune.analysis.movement import axes_of, stop
from onnxprune.analysis.state import Node, Tensor
from onnxprune.ir.nodes import subgraphs
from onnxprune.ir.subgraphs import Binding, bindings, trip_count


def follow(node: Node, walk: Callable[[GraphProto], None]) -> list[list[Axis]]:
    """Axes of the outputs of an If, a Loop or a Scan whose bodies `walk` walks; Misfit, before anything is walked, for other nodes."""
    found, record = bindings(node.proto, node.opset), node.record
    if found is None:
        raise Misfit("its bodies are not followed")
    times = trip_count(node.proto, found, record.shapes.types, record.shapes.values)
    for binding in found:
        if binding.inside:
            record.tensors[binding.inside] = Tensor(list(_enter(node, binding)))
    before = len(record.products)
    for body in subgraphs(node.proto):
        walk(body)
    if times is not None:
        record.products[before:] = [
            replace(p, factor=p.factor * times) for p in record.products[before:]
        ]
    results: dict[str, list[Axis]] = {}
    for binding in found:
        if binding.yields:
            _leave(node, binding, results)
    return [results.get(name, []) for name in node.proto.output]


def _enter(node: Node, binding: Binding) -> list[Axis]:
    """Axes of a body's input; an operand's axis goes no further where the passes run along it or change its length."""
    tensor = node.operands[binding.slot]
    inside = node.record.shapes.shape(binding.inside)
    if (
        tensor is None
        or inside is None
        or len(inside) + (binding.axis is not None) != len(tensor.axes)
        or node.record.shapes.shape(node.names[binding.slot]) is None
    ):
        why = node.why("its rank changes from pass to pass")
        for i, axis in enumerate(tensor.axes if tensor is not None else ()):
            tensor.axes[i] = (  # type: ignore[union-attr]
                why if axis is None else stop(node, axis, "its rank changes from pass to pass")
            )  # type: ignore[union-attr]
        return [why] * len(inside or ())
    axes = axes_of(node, binding.slot)
    if binding.axis is not None:
        stop(node, axes.pop(binding.axis % len(axes)), "the passes run along this axis")
    return [
        a
        if isinstance(a, int) or size == len(a)
        else stop(node, a, "its length changes from pass to pass")
        for a, size in zip(axes, inside, strict=False)
    ]


def _leave(node: Node, binding: Binding, results: dict[str, list[Axis]]) -> None:
    """Tie what a body yields to the state that it becomes, and to what other bodies yield in its place."""
    shapes = node.record.shapes
    axes = _yielded(node, binding)
    if binding.inside:
        axes = _tie(
            node,
            axes,
            list(node.record.tensors[binding.inside].axes),  # type: ignore[arg-type]
            shapes.shape(binding.inside),
        )
    if not binding.result:
        return
    if binding.axis is not None:
        axes.insert(binding.axis % (len(axes) + 1), node.why("the passes run along this axis"))
    results[binding.result] = _tie(
        node, axes, results.get(binding.result, axes), shapes.shape(binding.result)
    )


def _yielded(node: Node, binding: Binding) -> list[Axis]:
    made = node.record.tensors.get(binding.yields)
    for i, axis in enumerate(made.axes if made is not None else ()):
        if axis is None:
            made.axes[i] = node.why("returned by a body")  # type: ignore[union-attr]
    return list(made.axes) if made is not None else []  # type: ignore[arg-type]


def _tie(node: Node, a: list[Axis], b: list[Axis], shape: tuple | None) -> list[Axis]:
    """Axes that are both; frozen where the shape says that their lengths or ranks can differ."""
    if shape is None or not len(a) == len(b) == len(shape):
        for axis in (*a, *b):
            stop(node, axis, "returned with several ranks")
        return [node.why("returned with several ranks")] * len(shape or ())
    out: list[Axis] = []
    for x, y, size in zip(a, b, shape, strict=False):
        if any(isinstance(z, np.ndarray) and len(z) != size for z in (x, y)):
            x, y = (
                stop(node, x, "returned with several lengths"),
                stop(node, y, "returned with several lengths"),
            )
        node.record.causes.unify(x, y)
        out.append(y if isinstance(y, int) else x)
    return out
