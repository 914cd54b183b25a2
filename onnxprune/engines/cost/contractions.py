"""The multiply-accumulate layers of a graph as matrix products, for engines that are computed instead of run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from onnxprune.engines.base import fix_shapes
from onnxprune.errors import ModelError
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute, label
from onnxprune.ir.passes.canonicalize import canonicalize

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Contraction:
    """`groups` independent products (m, k) x (k, n); the (k, n) operand is the one an array holds.

    taps: kernel positions, a factor of k (of n for a transposed convolution); input_size, weight_size, output_size: elements; output: its tensor.
    """

    name: str
    op: str
    m: int
    k: int
    n: int
    groups: int = 1
    taps: int = 1
    input_size: int = 0
    weight_size: int = 0
    output_size: int = 0
    output: str = ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.groups * self.m * self.k * self.n

    @property
    def depthwise(self) -> bool:
        """One input and one output channel a group."""
        return self.groups > 1 and self.n == 1 and self.k == self.taps


@dataclass(frozen=True)
class Contractions:
    """layers: in graph order; skipped: "node (op)" of what multiplies and is not described here."""

    layers: tuple[Contraction, ...]
    skipped: tuple[str, ...] = ()


def contractions(model: Model, shapes: Mapping[str, Sequence[int]] | None = None) -> Contractions:
    """The contractions of a graph.

    Parameters
    ----------
    shapes
        Input name -> shape, for inputs with free axes. A free first axis is a batch of 1.

    Raises
    ------
    UsageError
        An input has a free axis other than the first and no shape was given.
    ModelError
        A layer's shape cannot be inferred.
    """
    model = canonicalize(fix_shapes(model, shapes or {}))
    known = tensor_shapes(model)
    found, skipped = [], []
    for node in model.proto.graph.node:
        name = label(node)
        if node.op_type in _SKIPPED:
            skipped.append(f"{name} ({node.op_type})")
        if node.op_type in _RULES:
            found.append(_RULES[node.op_type](name, node, known))
    return Contractions(tuple(found), tuple(skipped))


def tensor_shapes(model: Model) -> dict[str, Shape]:
    """Shapes of all tensors whose axes are known after shape inference, initializers included."""
    found = infer(model)
    known = {name: found.shape(name) for name in found.types}
    return {
        n: tuple(d for d in s if isinstance(d, int))
        for n, s in known.items()
        if s is not None and all(isinstance(d, int) for d in s)
    }


def _shape(known: Mapping[str, Shape], tensor: str, node: str) -> Shape:
    if tensor not in known:
        raise ModelError(
            "shapes-unknown",
            f"the shape of {tensor!r} at node {node!r} cannot be inferred; give the shapes of the model's inputs",
        )
    return known[tensor]


def _conv(name: str, node: NodeProto, known: Mapping[str, Shape]) -> Contraction:
    """A convolution as a product over im2col taps."""
    weight_name = node.input[3] if node.op_type == "QLinearConv" else node.input[1]
    image, weight, out = (
        _shape(known, t, name) for t in (node.input[0], weight_name, node.output[0])
    )
    groups, taps = attribute(node, "group", 1), math.prod(weight[2:])
    sizes = math.prod(image), math.prod(weight), math.prod(out)
    if node.op_type == "ConvTranspose":
        m, k, n = image[0] * math.prod(image[2:]), weight[0] // groups, weight[1] * taps
    else:
        m, k, n = out[0] * math.prod(out[2:]), weight[1] * taps, weight[0] // groups
    return Contraction(name, node.op_type, m, k, n, groups, taps, *sizes, node.output[0])


def _gemm(name: str, node: NodeProto, known: Mapping[str, Shape]) -> Contraction:
    """Gemm: the second operand is held."""
    a, b, out = (_shape(known, t, name) for t in (node.input[0], node.input[1], node.output[0]))
    k = a[0] if attribute(node, "transA", 0) else a[1]
    return Contraction(
        name,
        node.op_type,
        out[0],
        k,
        out[1],
        1,
        1,
        math.prod(a),
        math.prod(b),
        math.prod(out),
        node.output[0],
    )


def _matmul(name: str, node: NodeProto, known: Mapping[str, Shape]) -> Contraction:
    """MatMul: leading axes are rows where the second operand is shared by them, and independent products elsewhere."""
    second = node.input[3] if node.op_type == "QLinearMatMul" else node.input[1]
    a, b, out = (_shape(known, t, name) for t in (node.input[0], second, node.output[0]))
    sizes = math.prod(a), math.prod(b), math.prod(out)
    k, n = a[-1], b[-1] if len(b) > 1 else 1
    groups = math.prod(b[:-2])
    return Contraction(
        name,
        node.op_type,
        math.prod(out) // max(1, n * groups),
        k,
        n,
        groups,
        1,
        *sizes,
        node.output[0],
    )


_RULES: Mapping[str, Callable[[str, NodeProto, Mapping[str, Shape]], Contraction]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "ConvInteger": _conv,
    "QLinearConv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
}
_SKIPPED = frozenset(
    {
        "Einsum",
        "LSTM",
        "GRU",
        "RNN",
        "Attention",
        "MultiHeadAttention",
        "DeformConv",
        "If",
        "Loop",
        "Scan",
    }
)
