"""Contractions of a graph as matrix products, for engines whose latency is computed."""

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
    """`groups` independent products (m, k) x (k, n); an array holds the (k, n) operand.

    Attributes
    ----------
    name, op
        The node and its operator.
    m, k, n
        Rows, length of the sums, columns.
    groups
        Number of products.
    taps
        Kernel positions, a factor of k (of n for a transposed convolution).
    input_size, weight_size, output_size
        Elements of the tensors.
    output
        Name of the output tensor.
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
        """True with one input and one output channel per group."""
        return self.groups > 1 and self.n == 1 and self.k == self.taps


@dataclass(frozen=True)
class Contractions:
    """Contractions of a graph.

    Attributes
    ----------
    layers
        In graph order.
    skipped
        "node (op)" of nodes that multiply and are not described here.
    """

    layers: tuple[Contraction, ...]
    skipped: tuple[str, ...] = ()


def contractions(model: Model, shapes: Mapping[str, Sequence[int]] | None = None) -> Contractions:
    """Return the contractions of a graph.

    Parameters
    ----------
    shapes
        Input name -> shape, for inputs with dynamic axes; a dynamic first axis is a batch of 1.

    Raises
    ------
    UsageError
        An input has a dynamic axis other than the first and no shape was given.
    ModelError
        The shape of a layer cannot be inferred.
    """
    # static shapes first: only they let canonicalize fold the arithmetic on shapes
    model = canonicalize(fix_shapes(model, shapes or {}))
    known = tensor_shapes(model)
    layers, skipped = [], []
    for node in model.proto.graph.node:
        name = label(node)
        # listed instead of refused: the other layers are still counted
        if node.op_type in _SKIPPED:
            skipped.append(f"{name} ({node.op_type})")
        if node.op_type in _RULES:
            layers.append(_RULES[node.op_type](name, node, known))
    return Contractions(tuple(layers), tuple(skipped))


def tensor_shapes(model: Model) -> dict[str, Shape]:
    """Return the shapes of all tensors with static axes, initializers included."""
    inferred = infer(model)
    shapes = {}
    for name in inferred.types:
        shape = inferred.shape(name)
        # an axis by name has no length that cycles could be computed with
        if shape is not None and all(isinstance(d, int) for d in shape):
            shapes[name] = tuple(d for d in shape if isinstance(d, int))
    return shapes


def _find_shape(known: Mapping[str, Shape], tensor: str, node: str) -> Shape:
    """Return the shape of a tensor; ModelError if it is unknown."""
    if tensor not in known:
        raise ModelError(
            "shapes-unknown",
            f"the shape of {tensor!r} at node {node!r} cannot be inferred; "
            "pass the shapes of the model's inputs (--shape NAME:1,...)",
        )
    return known[tensor]


def _describe_conv(name: str, node: NodeProto, known: Mapping[str, Shape]) -> Contraction:
    """Return a convolution as a product over im2col taps."""
    # QLinear operators interleave tensors, scales and zero points
    weight_name = node.input[3] if node.op_type == "QLinearConv" else node.input[1]
    tensors = (node.input[0], weight_name, node.output[0])
    image, weight, out = (_find_shape(known, tensor, name) for tensor in tensors)
    # of a weight (out, in, kernel...), all axes after the second are taps
    groups, taps = attribute(node, "group", 1), math.prod(weight[2:])
    sizes = math.prod(image), math.prod(weight), math.prod(out)
    if node.op_type == "ConvTranspose":
        # every input pixel is multiplied with all taps, then added to the output
        m, k, n = image[0] * math.prod(image[2:]), weight[0] // groups, weight[1] * taps
    else:
        m, k, n = out[0] * math.prod(out[2:]), weight[1] * taps, weight[0] // groups
    return Contraction(name, node.op_type, m, k, n, groups, taps, *sizes, node.output[0])


def _describe_gemm(name: str, node: NodeProto, known: Mapping[str, Shape]) -> Contraction:
    """Return a Gemm; the array holds the second operand."""
    # the optional bias adds no products
    tensors = (node.input[0], node.input[1], node.output[0])
    a, b, out = (_find_shape(known, tensor, name) for tensor in tensors)
    sizes = math.prod(a), math.prod(b), math.prod(out)
    k = a[0] if attribute(node, "transA", 0) else a[1]
    return Contraction(name, node.op_type, out[0], k, out[1], 1, 1, *sizes, node.output[0])


def _describe_matmul(name: str, node: NodeProto, known: Mapping[str, Shape]) -> Contraction:
    """Return a MatMul.

    Leading axes are rows if they share the second operand, and independent products otherwise.
    """
    second = node.input[3] if node.op_type == "QLinearMatMul" else node.input[1]
    tensors = (node.input[0], second, node.output[0])
    a, b, out = (_find_shape(known, tensor, name) for tensor in tensors)
    sizes = math.prod(a), math.prod(b), math.prod(out)
    # a second operand with one axis is a column
    k, n = a[-1], b[-1] if len(b) > 1 else 1
    # a second operand with leading axes is another matrix for each
    groups = math.prod(b[:-2])
    # from the output, which has all broadcast axes; at least 1 for empty operands
    m = math.prod(out) // max(1, n * groups)
    return Contraction(name, node.op_type, m, k, n, groups, 1, *sizes, node.output[0])


_RULES: Mapping[str, Callable[[str, NodeProto, Mapping[str, Shape]], Contraction]] = {
    "Conv": _describe_conv,
    "ConvTranspose": _describe_conv,
    "ConvInteger": _describe_conv,
    "QLinearConv": _describe_conv,
    "Gemm": _describe_gemm,
    "MatMul": _describe_matmul,
    "MatMulInteger": _describe_matmul,
    "QLinearMatMul": _describe_matmul,
}
_SKIPPED = frozenset(
    {
        *("Einsum", "Attention", "MultiHeadAttention", "DeformConv"),
        *("LSTM", "GRU", "RNN"),
        *("If", "Loop", "Scan"),
    }
)
