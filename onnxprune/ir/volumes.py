"""Least numbers of elements of tensors, also where inference does not know a length.

A dynamic length counts as 1, but what a node makes of it is unknown to inference: N repeated a
million times is no more than another unknown length. Here it counts as a million.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

import numpy as np
from onnx import GraphProto, NodeProto

from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute
from onnxprune.ir.shapes import Shapes

# results have at least as many elements as the largest operand
_NO_FEWER = frozenset(
    """
    Abs Add And Cast CastLike Ceil Clip Div Elu Equal Erf Exp Expand Flatten Floor Gelu Greater
    HardSigmoid Identity LeakyRelu Less Log LogSoftmax Max Mean Min Mod Mul Neg Not Or Pow PRelu
    Reciprocal Relu Reshape Round Selu Shrink Sigmoid Sign Softmax Softplus Softsign Sqrt Squeeze
    Sub
    Sum Tanh ThresholdedRelu Transpose Unsqueeze Where Xor
    """.split()
)
_BY_NUMBERS = frozenset("Reshape Squeeze Unsqueeze Expand".split())  # operand 1 is no data


def least_elements(graph: GraphProto, shapes: Shapes) -> dict[str, int]:
    """Return the least number of elements of each result, where it exceeds the known lengths."""
    least: dict[str, int] = {}

    def count(name: str) -> int:
        dims = shapes.shape(name)
        known = 0 if dims is None else prod(d for d in dims if isinstance(d, int))
        return max(known, least.get(name, 0))

    for node in graph.node:
        if node.domain not in STANDARD_DOMAINS:
            continue
        expand = _EXPANDING.get(node.op_type)
        if expand is None and node.op_type not in _NO_FEWER:
            continue
        data = node.input[:1] if node.op_type in _BY_NUMBERS else node.input
        sizes = [count(name) for name in data if name]
        # a fill has no data of its own
        number = expand(node, sizes, shapes) if expand else max(sizes, default=0)
        for output in filter(None, node.output[:1]):
            if number > count(output):
                least[output] = number
    return least


def _numbers(shapes: Shapes, node: NodeProto, slot: int) -> Iterable[float]:
    """Return the known elements of an operand."""
    value = shapes.values.get(node.input[slot]) if slot < len(node.input) else None
    if value is None:
        return []
    return [v for v in np.ravel(value).tolist() if isinstance(v, int | float)]


def _repeat(node: NodeProto, sizes: list[int], shapes: Shapes) -> int:
    return sizes[0] * int(prod(_numbers(shapes, node, 1)))


def _join(node: NodeProto, sizes: list[int], shapes: Shapes) -> int:
    return sum(sizes)


def _resize(node: NodeProto, sizes: list[int], shapes: Shapes) -> int:
    # the scales are the last operand but one, or the attribute of old versions
    slot = 1 if len(node.input) < 3 else 2
    scales = list(_numbers(shapes, node, slot)) or attribute(node, "scales") or []
    share = prod(scales)
    return int(sizes[0] * share) if np.isfinite(share) else sizes[0]


def _pad(node: NodeProto, sizes: list[int], shapes: Shapes) -> int:
    dims = shapes.shape(node.input[0])
    amounts = [int(v) for v in _numbers(shapes, node, 1)] or list(attribute(node, "pads") or [])
    if dims is None or len(amounts) != 2 * len(dims):
        return sizes[0]
    ends = zip(amounts[: len(dims)], amounts[len(dims) :], strict=True)
    lengths = [d if isinstance(d, int) else 1 for d in dims]
    return prod(
        max(0, d + before + after) for d, (before, after) in zip(lengths, ends, strict=True)
    )


_EXPANDING: dict[str, Callable[[NodeProto, list[int], Shapes], int]] = {
    "Tile": _repeat,
    "Concat": _join,
    "Resize": _resize,
    "Upsample": _resize,
    "Pad": _pad,
}
