"""Expansion of onnxruntime's fused float operators into standard ones.

A graph that onnxruntime saved at level EXTENDED holds convolutions and products with a residual
and an activation inside. As standard nodes they have the statistics, gradients and refits that
the original graph has; onnxruntime fuses them again when it loads the written model. Operators
with channels last stay, because their expansion would add transposes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from math import pi, sqrt
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from onnxprune.ir.contrib import CONTRIB_DOMAIN, matmul_order
from onnxprune.ir.edit import add_initializer, replace_nodes
from onnxprune.ir.model import EditableModel, ModelView
from onnxprune.ir.nodes import attribute, nested
from onnxprune.ir.shapes import Shapes

_GELU = 20  # first opset with Gelu
_BOUNDS_ARE_INPUTS = 11  # opset from which the bounds of Clip are inputs
_CUBE = 0.044715  # coefficient of the approximation of Gelu by Tanh (Hendrycks and Gimpel 2016)
_SKIP_EPSILON = 1e-12  # default of the Skip operators; that of the standard ones is 1e-5
_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
# Activations that may be fused, with their parameters in the order of `activation_params`
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys("HardSwish Relu Sigmoid Softplus Softsign Tanh".split(), ()),
    **dict.fromkeys("Elu LeakyRelu ThresholdedRelu".split(), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
    "Clip": ("min", "max"),
}


class _Unexpandable(Exception):
    """The node is in a form that has no standard nodes, or that its unknown type hides."""


def expand_fused(model: EditableModel, shapes: Shapes) -> bool:
    """Expand the fused operators of all graphs; return whether there were any.

    Parameters
    ----------
    shapes
        Inferred before; a node whose element type or rank is needed and unknown stays.
    """
    if not has_fused(model):
        return False
    uses = Counter(n for g in nested(model.proto.graph) for node in g.node for n in node.input)
    changed = False
    # inner graphs first, because replacing the nodes of an outer one copies its bodies
    for graph in reversed(list(nested(model.proto.graph))):
        if not any(map(_is_fused, graph.node)):
            continue
        nodes: list[NodeProto] = []
        products = {o for n in graph.node if n.op_type in _PRODUCTS for o in n.output}
        for node in graph.node:
            if not _is_fused(node):
                nodes.append(node)
                continue
            try:
                nodes += _Expansion(model, shapes, uses, products, node).expand()
                changed = True
            except _Unexpandable:
                nodes.append(node)
        replace_nodes(graph, nodes)
    return changed


def has_fused(model: ModelView) -> bool:
    """Return whether a model holds operators that `expand_fused` replaces."""
    return any(_is_fused(node) for graph in nested(model.proto.graph) for node in graph.node)


def _is_fused(node: NodeProto) -> bool:
    return node.domain == CONTRIB_DOMAIN and node.op_type in EXPANDED


class _Expansion:
    """Standard nodes of one fused node; the first product keeps its name, the last its output."""

    def __init__(
        self,
        model: EditableModel,
        shapes: Shapes,
        uses: Counter[str],
        products: Collection[str],
        node: NodeProto,
    ) -> None:
        self.model = model
        self.shapes = shapes
        self.uses = uses
        self.products = products
        self.node = node
        self.name = next(o for o in node.output if o)  # unique, unlike names of nodes
        self.nodes: list[NodeProto] = []

    def expand(self) -> list[NodeProto]:
        """Return the nodes in topological order."""
        EXPANDED[self.node.op_type](self)
        last = self.nodes[-1]
        if self.node.output[0]:
            last.output[0] = self.node.output[0]
        if len(self.nodes) == 1:
            last.doc_string = self.node.doc_string
        return self.nodes

    def operand(self, slot: int) -> str:
        """Return the name of an operand, "" if it is absent."""
        return self.node.input[slot] if slot < len(self.node.input) else ""

    def emit(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        name = f"{self.name}/{op}{len(self.nodes)}"
        node = helper.make_node(op, list(inputs), [f"{name}_out"], name, **attributes)
        self.nodes.append(node)
        return node.output[0]

    def emit_product(self, op: str, *inputs: str, skipped: Sequence[str] = ()) -> str:
        """Append the product with the fused node's attributes, except those that begin so."""
        out = self.emit(op, *inputs)
        product = self.nodes[-1]
        product.name = self.node.name
        if skipped:
            kept = [a for a in self.node.attribute if not a.name.startswith(tuple(skipped))]
            product.attribute.extend(kept)
        # an absent trailing operand would be an empty name, which some runtimes reject
        while product.input and not product.input[-1]:
            product.input.pop()
        return out

    def scalar(self, value: float, like: str) -> str:
        """Return the name of a constant with the element type of a tensor."""
        dtype = self.shapes.dtype(like)
        if not dtype:
            raise _Unexpandable
        kind = helper.tensor_dtype_to_np_dtype(dtype)
        name = f"{self.name}/constant{len(self.nodes)}"
        return add_initializer(self.model, name, np.array(value).astype(kind))

    def activate(self, x: str, like: str) -> str:
        """Apply the activation of the node's attributes, if it has one.

        Parameters
        ----------
        x
            Operand of the activation.
        like
            Tensor with its element type.
        """
        op = attribute(self.node, "activation", "")
        if not op:
            return x
        if op not in _ACTIVATIONS:
            raise _Unexpandable
        names = _ACTIVATIONS[op]
        # FusedConv lists the parameters, the products have an attribute for each
        given = dict(zip(names, attribute(self.node, "activation_params", ()), strict=False))
        for name in names:
            value = attribute(self.node, f"activation_{name}")
            if value is not None:
                given[name] = value
        if op == "Clip" and self.model.opset >= _BOUNDS_ARE_INPUTS:
            bounds = [self.scalar(given[n], like) if n in given else "" for n in names]
            return self.emit(op, x, *bounds)
        return self.emit(op, x, **given)

    def transpose(self, name: str, perm: Sequence[int]) -> str:
        """Return a transposed operand; a weight with no other use becomes another constant."""
        inputs = {i.name for i in self.model.proto.graph.input}
        weight = self.model.weights.get(name)
        if weight is None or name in inputs or self.uses[name] > 1:
            return self.emit("Transpose", name, perm=list(perm))
        values = np.ascontiguousarray(weight.array().transpose(perm))
        return add_initializer(self.model, f"{name}_transposed", values)

    def matmul_operand(self, slot: int, letter: str) -> str:
        """Return an operand of FusedMatMul with its axes in the order of MatMul."""
        name = self.node.input[slot]
        if not any(attribute(self.node, f"{key}{letter}", 0) for key in ("trans", "transBatch")):
            return name
        shape = self.shapes.shape(name)
        if shape is None:
            raise _Unexpandable
        order = matmul_order(self.node, letter, len(shape))
        return self.transpose(name, order) if order != list(range(len(shape))) else name

    def gelu(self, x: str, like: str, approximate: bool = False) -> None:
        """Apply Gelu, in the form that onnxruntime fuses where the opset has no such operator."""
        if self.model.opset >= _GELU:
            self.emit("Gelu", x, **({"approximate": "tanh"} if approximate else {}))
            return
        # before the opset, a subgraph of standard operators that onnxruntime fuses again
        one, half = self.scalar(1.0, like), 0.5
        if approximate:
            square = self.emit("Mul", self.emit("Mul", x, self.scalar(_CUBE, like)), x)
            inner = self.emit("Add", square, one)
            scaled = self.emit("Mul", x, self.scalar(sqrt(2 / pi), like))
            gate = self.emit("Tanh", self.emit("Mul", inner, scaled))
            self.emit(
                "Mul", self.emit("Add", gate, one), self.emit("Mul", x, self.scalar(half, like))
            )
            return
        gate = self.emit("Erf", self.emit("Div", x, self.scalar(sqrt(2), like)))
        product = self.emit("Mul", x, self.emit("Add", gate, one))
        self.emit("Mul", product, self.scalar(half, like))


def _conv(e: _Expansion) -> None:
    """Convolve, add the residual, apply the activation."""
    x, weight, bias, residual = (e.operand(i) for i in range(4))
    out = e.emit_product("Conv", x, weight, bias, skipped=["activation"])
    if residual:
        out = e.emit("Add", out, residual)
    e.activate(out, x)


def _gemm(e: _Expansion) -> None:
    """Compute Gemm and apply the activation."""
    operands = [e.operand(i) for i in range(3)]
    e.activate(e.emit_product("Gemm", *operands, skipped=["activation"]), operands[0])


def _matmul(e: _Expansion) -> None:
    """Multiply two matrices in any order of axes, scale, apply the activation."""
    x = e.operand(0)
    operands = [e.matmul_operand(0, "A"), e.matmul_operand(1, "B")]
    alpha = attribute(e.node, "alpha", 1.0)
    constant = [name in e.model.weights for name in operands]
    # before a weight the data are scaled, so that a bias follows the product and is fitted with it
    if alpha != 1 and any(constant):
        data = constant.index(True) - 1
        operands[data] = e.emit("Mul", operands[data], e.scalar(alpha, x))
    out = e.emit_product("MatMul", *operands)
    if alpha != 1 and not any(constant):
        out = e.emit("Mul", out, e.scalar(alpha, x))
    e.activate(out, x)


def _gemm_gelu(e: _Expansion) -> None:
    """Multiply, add the bias, apply Gelu by Tanh."""
    x, weight, bias = (e.operand(i) for i in range(3))
    out = e.emit_product("MatMul", x, weight)
    e.gelu(e.emit("Add", out, bias) if bias else out, x, approximate=True)


def _bias_gelu(e: _Expansion) -> None:
    """Add a bias if there is one, and apply Gelu, for FastGelu by Tanh."""
    x, bias = e.operand(0), e.operand(1)
    out = e.emit("Add", x, bias) if bias else x
    e.gelu(out, x, approximate=e.node.op_type == "FastGelu")


def _quick_gelu(e: _Expansion) -> None:
    """Multiply x by Sigmoid(alpha x)."""
    x = e.operand(0)
    alpha = attribute(e.node, "alpha", 1.702)
    scaled = e.emit("Mul", x, e.scalar(alpha, x)) if alpha != 1 else x
    e.emit("Mul", x, e.emit("Sigmoid", scaled))


def _skip_normalization(e: _Expansion) -> None:
    """Add two tensors and a bias, and normalize the sum, which is the fourth output."""
    simplified = e.node.op_type == "SkipSimplifiedLayerNormalization"
    outputs = [*e.node.output, "", "", ""]
    if simplified and outputs[1]:
        raise _Unexpandable  # the standard form computes no mean
    scale, shift, bias = (e.operand(i) for i in range(2, 5))
    # the simplified form has no shift: its operand in that slot is the bias
    if simplified:
        shift, bias = "", shift
    x, skip = e.operand(0), e.operand(1)
    if bias and skip in e.products and x not in e.products:
        x, skip = skip, x
    # first to the product, whose bias it is: least squares fits both together
    total = e.emit("Add", e.emit("Add", x, bias) if bias else x, skip)
    if outputs[3]:
        total = e.nodes[-1].output[0] = outputs[3]
    op = "SimplifiedLayerNormalization" if simplified else "LayerNormalization"
    epsilon = attribute(e.node, "epsilon", _SKIP_EPSILON)
    e.emit(op, total, scale, *([shift] if shift else []), axis=-1, epsilon=epsilon)
    norm = e.nodes[-1]
    norm.name = e.node.name
    norm.output.extend(outputs[2:3] if simplified else outputs[1:3])
    # outputs that only training needs are left out where they have no name
    while not norm.output[-1]:
        norm.output.pop()


# Fused operator -> its expansion
EXPANDED: Mapping[str, Callable[[_Expansion], None]] = {
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    **dict.fromkeys("FusedMatMul FusedMatMulActivation TransposeMatMul".split(), _matmul),
    "GemmFastGelu": _gemm_gelu,
    **dict.fromkeys("BiasGelu FastGelu Gelu".split(), _bias_gelu),
    "QuickGelu": _quick_gelu,
    **dict.fromkeys(
        "SkipLayerNormalization SkipSimplifiedLayerNormalization".split(), _skip_normalization
    ),
}
