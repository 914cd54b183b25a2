"""Axes of operands, and the literals that spell sizes, for operators that move positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.analysis.causes import Axis
from onnxprune.analysis.folded import Folded
from onnxprune.analysis.rule import Misfit
from onnxprune.analysis.state import Node, SizeLiteral
from onnxprune.ir.values import Dim

Axes = list[Axis]
Place = tuple[str, str | int]  # ("attribute", name) or ("input", slot)
_NO_LITERAL = 1 << 30  # more operands than any node has
# First operand that spells sizes, positions or bounds, as do all after it; 1 for other operators
_FIRST_LITERAL = {
    "Concat": _NO_LITERAL,
    "QLinearConcat": _NO_LITERAL,
    "Gather": 2,
    "MaxUnpool": 2,
    "RotaryEmbedding": _NO_LITERAL,
    "ConstantOfShape": 0,
}


def first_literal(op: str) -> int:
    """Return the slot of the first operand that is not data."""
    return _FIRST_LITERAL.get(op, 1)


def axes_of(node: Node, slot: int = 0) -> Axes:
    """Return the axes of an operand; those of a constant get fresh causes on first use."""
    tensor, shape = node.operand(slot), node.shape(slot)
    axes: Axes = []
    for i, axis in enumerate(tensor.axes):
        if axis is None:
            axis = tensor.axes[i] = fresh_axis(node, shape[i] if i < len(shape) else None)
        axes.append(axis)
    return axes


def fresh_axis(node: Node, size: Dim) -> Axis:
    """Return an axis of fresh causes; frozen if it is dynamic or of length 1."""
    if not isinstance(size, int):
        return node.why("dynamic axis")
    return node.record.causes.fresh(size, node.single())


def ids_of(node: Node, axis: Axis, size: Dim) -> np.ndarray:
    """Return the ids of an axis, frozen or not; Misfit if it is dynamic."""
    if isinstance(axis, np.ndarray):
        return axis
    if not isinstance(size, int):
        raise Misfit("a dynamic axis is taken apart")
    return node.record.causes.frozen(axis, size)


def stop(node: Node, axis: Axis, text: str) -> int:
    """Freeze an axis; return the number of the reason."""
    why = axis if isinstance(axis, int) else node.why(text)
    node.record.causes.freeze(axis, why)
    return why


def freeze_axes(node: Node, axes: Axes, where: list[int] | None, text: str) -> Axes:
    """Return the axes with those of the given indices frozen; all of them for None."""
    frozen = range(len(axes)) if where is None else [a % len(axes) for a in where]
    return [stop(node, a, text) if i in frozen else a for i, a in enumerate(axes)]


def place(node: Node, name: str, slot: int) -> Place:
    """Return where a list of sizes is: an input in newer opsets, an attribute in older ones."""
    if slot < len(node.proto.input) and node.proto.input[slot]:
        return "input", slot
    return "attribute", name


def read_list(node: Node, name: str, slot: int) -> list[int] | None:
    """Return a list of integers that is an attribute or a constant input; None if absent.

    Raises
    ------
    Misfit
        The input is not constant, or not a list of integers.
    """
    if place(node, name, slot)[0] == "attribute":
        return node.integers(name)
    value = node.value(slot)
    if value is None:
        raise Misfit(f"{name} is computed from the input")
    if value.ndim > 1 or value.dtype.kind not in "iu":
        raise Misfit(f"{name} is not a list of integers")
    return [int(v) for v in value.ravel()]


def record_literal(
    node: Node, where: Place, entries: Sequence[Axis | None], watch: Sequence[np.ndarray] = ()
) -> None:
    """Record a literal that must be rewritten after a cut.

    A literal that is computed and of which nothing is known cannot be rewritten; its axes are
    frozen instead. See `state.SizeLiteral` for `entries` and `watch`.
    """
    arrays = tuple(e if isinstance(e, np.ndarray) else None for e in entries)
    kind, slot = where
    # attributes are numbers, which spell no dynamic length
    scaled = tuple(e.arrays if kind == "input" and isinstance(e, Folded) else () for e in entries)
    given = kind == "input" and int(slot) < len(node.names) and node.names[int(slot)]
    # nothing is known of the list, not even which entries the graph computes
    if given and node.partial(int(slot)) is None:
        for axis in (*entries, *watch):
            if axis is not None:
                stop(node, axis, "its size is computed")
    elif any(a is not None for a in arrays) or any(scaled):
        node.record.literals.append(
            SizeLiteral(node.index, where, arrays, watch=tuple(watch), scaled=scaled)
        )
