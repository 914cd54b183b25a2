"""Multiply-accumulates of a node by its row: products of the lengths of letters and positions."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.analysis.axis_keys import Key, Nth
from onnxprune.analysis.causes import Axis
from onnxprune.analysis.notation import LEADING, SPATIAL, Pattern
from onnxprune.analysis.products import Factored, Product
from onnxprune.analysis.state import Node
from onnxprune.ir.values import Dim


def count(
    node: Node,
    pattern: Pattern,
    term: str,
    axes: Mapping[Key, Axis],
    lengths: Mapping[Key, Dim],
    places: Mapping[Key, list[tuple[str, int]]],
) -> Product:
    """Return one product of the multiply-accumulates.

    Parameters
    ----------
    node
        The node.
    pattern
        Pattern of its row.
    term
        Entry of `Rule.macs`.
    axes, lengths, places
        Axis, length, and (tensor, axis) of the dynamic axes, per letter.
    """
    factors = Factored()
    for word in term.split():
        if word in "*@#":
            _count_positions(node, pattern, word, factors)
            continue
        keys: list[Key] = [word]
        # all leading axes of the node, some of which a broadcast operand lacks
        if word == LEADING:
            keys = [k for k in lengths if isinstance(k, Nth) and k.mark == LEADING]
        for key in keys:
            unique = tuple(dict.fromkeys(places.get(key, ())))
            factors.multiply(axes.get(key), lengths.get(key), unique)
    return factors.product(node.index)


def _count_positions(node: Node, pattern: Pattern, mark: str, factors: Factored) -> None:
    """Multiply by the spatial positions of the output, the input or the kernel."""
    if mark == "*":
        tokens, name, shape = pattern.outputs[0], node.proto.output[0], node.out_shape()
    else:
        # kernels are no first operand: that one is the data
        kernel = next((i for i, t in enumerate(pattern.inputs) if i and SPATIAL in t), 0)
        slot = 0 if mark == "@" else kernel
        tokens, name, shape = pattern.inputs[slot], node.names[slot], node.shape(slot)
    first = tokens.index(SPATIAL)
    last = len(shape) - (len(tokens) - first - 1)  # channels may come after the positions
    for axis in range(first, last):
        factors.multiply(None, shape[axis], ((name, axis),))
