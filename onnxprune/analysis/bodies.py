"""Axes of If, Loop and Scan: channels enter bodies, are carried by states, and leave again.

One pass through a body is enough: after it, a state is tied to what it becomes, and ties hold for
everything before and after them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from onnx import GraphProto

from onnxprune.analysis.causes import Axis
from onnxprune.analysis.literals import axes_of, stop
from onnxprune.analysis.rule import Misfit
from onnxprune.analysis.state import Node, Tensor
from onnxprune.ir.nodes import subgraphs
from onnxprune.ir.subgraphs import Binding, bindings, trip_count
from onnxprune.ir.values import Dim

_ITERATED = "the iterations run along this axis"
_RANK_CHANGES = "its rank changes between iterations"
_LENGTH_CHANGES = "its length changes between iterations"


def follow(node: Node, walk: Callable[[GraphProto], None]) -> list[list[Axis]]:
    """Return the axes of the outputs of an If, a Loop or a Scan.

    Parameters
    ----------
    node
        Node with bodies.
    walk
        Analyzes one body.

    Raises
    ------
    Misfit
        The node is another one; no body was analyzed.
    """
    links, record = bindings(node.proto, node.opset), node.record
    if links is None:
        raise Misfit("its bodies are not followed")
    times = trip_count(node.proto, links, record.shapes.types, record.shapes.values)
    # before the bodies: their nodes read these tensors as outputs of earlier nodes
    for binding in links:
        if binding.inside:
            record.tensors[binding.inside] = Tensor(list(_enter(node, binding)))
    before = len(record.products)
    for body in subgraphs(node.proto):
        walk(body)
    # without a constant trip count, the number of iterations follows from the sizes of a run
    loops = () if times is not None or node.op == "If" else (node.index,)
    # products of bodies inside are among them, so that counts of nested loops multiply
    record.products[before:] = [
        replace(p, factor=p.factor * (1 if times is None else times), loops=(*p.loops, *loops))
        for p in record.products[before:]
    ]
    results: dict[str, list[Axis]] = {}
    for binding in links:
        if binding.yields:
            _leave(node, binding, results)
    return [results.get(name, []) for name in node.proto.output]


def _enter(node: Node, binding: Binding) -> list[Axis]:
    """Return the axes of a body's input.

    An axis of the operand is frozen if the iterations run along it or change its length.
    """
    tensor = node.operands[binding.slot]
    inside = node.record.shapes.shape(binding.inside)
    # without both ranks, axes inside and outside cannot be matched
    if (
        tensor is None
        or inside is None
        or len(inside) + (binding.axis is not None) != len(tensor.axes)
        or node.record.shapes.shape(node.names[binding.slot]) is None
    ):
        why = node.why(_RANK_CHANGES)
        if tensor is not None:
            tensor.axes[:] = [stop(node, a, _RANK_CHANGES) for a in tensor.freeze_unset(why)]
        return [why] * len(inside or ())
    axes = axes_of(node, binding.slot)
    if binding.axis is not None:
        # inside, each iteration sees one slice, which has no such axis
        stop(node, axes.pop(binding.axis % len(axes)), _ITERATED)
    return [
        a if isinstance(a, int) or size == len(a) else stop(node, a, _LENGTH_CHANGES)
        for a, size in zip(axes, inside, strict=True)
    ]


def _leave(node: Node, binding: Binding, results: dict[str, list[Axis]]) -> None:
    """Tie what a body yields to the state that it becomes, and to the results of other bodies."""
    shapes, tensors = node.record.shapes, node.record.tensors
    why = node.why("returned by a body")
    axes = tensors[binding.yields].freeze_unset(why) if binding.yields in tensors else []
    if binding.inside:
        state = tensors[binding.inside].freeze_unset(why)
        axes = _tie(node, axes, state, shapes.shape(binding.inside))
    if not binding.result:
        return
    if binding.axis is not None:
        # the result stacks what all iterations yield along an axis of its own
        axes.insert(binding.axis % (len(axes) + 1), node.why(_ITERATED))
    # an If has a result per branch: all branches return the same channels
    others = results.get(binding.result, axes)
    results[binding.result] = _tie(node, axes, others, shapes.shape(binding.result))


def _tie(node: Node, a: list[Axis], b: list[Axis], shape: tuple[Dim, ...] | None) -> list[Axis]:
    """Unify two lists of axes; freeze them if their lengths or ranks can differ."""
    if shape is None or not len(a) == len(b) == len(shape):
        text = "returned with several ranks"
        for axis in (*a, *b):
            stop(node, axis, text)
        return [node.why(text)] * len(shape or ())
    out: list[Axis] = []
    for x, y, size in zip(a, b, shape, strict=True):
        if any(isinstance(z, np.ndarray) and len(z) != size for z in (x, y)):
            text = "returned with several lengths"
            x, y = stop(node, x, text), stop(node, y, text)
        node.record.causes.unify(x, y)
        # a frozen axis on either side freezes the other as well
        out.append(y if isinstance(y, int) else x)
    return out
