"""Weights of linear layers as matrices.

Rows are outputs. Columns are the values that one output reads: channels vary slowest, taps fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxprune.errors import unknown
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute

OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class LinearWeight:
    """A weight that can be made sparse.

    Attributes
    ----------
    tensor : str
        Name of the weight.
    nodes : tuple of NodeProto
        Nodes that read it, all in the same way.
    groups : int
        Groups of the convolution; 1 for other operators.
    """

    tensor: str
    nodes: tuple[NodeProto, ...]
    groups: int = 1

    @property
    def op(self) -> str:
        """Operator of its nodes."""
        return str(self.nodes[0].op_type)

    @property
    def transposed(self) -> bool:
        """True if a Gemm stores the weight as (outputs, inputs)."""
        return bool(attribute(self.nodes[0], "transB", 0))

    def to_rows(self, values: np.ndarray) -> np.ndarray:
        """Return the weight as (groups, outputs per group, inputs per group * taps)."""
        if self.op == "Conv":
            return values.reshape(self.groups, values.shape[0] // self.groups, -1)
        if self.op == "ConvTranspose":
            inputs, outputs = values.shape[0] // self.groups, values.shape[1]
            # reversed taps are those of the equivalent convolution
            blocks = values.reshape(self.groups, inputs, outputs, -1)[..., ::-1]
            return blocks.transpose(0, 2, 1, 3).reshape(self.groups, outputs, -1)
        return (values if self.transposed else values.T)[None]

    def from_rows(self, rows: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return the contiguous weight of these rows: the inverse of `to_rows`."""
        if self.op == "Conv":
            return np.ascontiguousarray(rows.reshape(shape))
        if self.op == "ConvTranspose":
            blocks = rows.reshape(self.groups, shape[1], shape[0] // self.groups, -1)
            return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3)[..., ::-1].reshape(shape))
        return np.ascontiguousarray(rows[0] if self.transposed else rows[0].T)

    def taps(self, shape: Sequence[int]) -> int:
        """Return the number of columns per input channel."""
        return int(np.prod(shape[2:])) if self.op.startswith("Conv") else 1

    def private_bias(self, model: Model) -> str | None:
        """Return the name of the bias if only this weight's single node reads it, else None."""
        node = self.nodes[0]
        if len(self.nodes) != 1 or self.op == "MatMul" or len(node.input) < 3:
            return None
        if attribute(node, "beta", 1.0) != 1:
            return None
        name = str(node.input[2])
        uses = sum(list(n.input).count(name) for n in model.proto.graph.node)
        if name not in model.weights or uses != 1 or len(model.weights[name].shape) != 1:
            return None
        return name


def linear_weights(model: Model, ops: Sequence[str] = ("Conv",)) -> list[LinearWeight]:
    """Return the float weights of these operators in graph order.

    A weight that nodes read in different ways is left out.

    Raises
    ------
    UsageError
        An operator that has no weights of this kind.
    """
    for op in ops:
        if op not in OPS:
            raise unknown("operator", op, OPS)
    consumers: dict[str, list[NodeProto]] = {}
    for node in model.proto.graph.node:
        for position, name in enumerate(node.input):
            if name in model.weights:
                as_weight = node.op_type in ops and position == 1
                as_weight = as_weight and not attribute(node, "transA", 0)
                # an empty node stands for any other use, which keeps the weight out
                consumers.setdefault(name, []).append(node if as_weight else NodeProto())
    result = []
    for name, nodes in consumers.items():
        uses = {(n.op_type, attribute(n, "group", 1), attribute(n, "transB", 0)) for n in nodes}
        if len(uses) == 1 and nodes[0].op_type and _is_linear(model, name, nodes[0].op_type):
            result.append(LinearWeight(name, tuple(nodes), attribute(nodes[0], "group", 1)))
    return result


def _is_linear(model: Model, name: str, op: str) -> bool:
    """Return True for a float weight of the rank that the operator takes."""
    weight = model.weights[name]
    if weight.array().dtype.kind != "f":
        return False
    rank = len(weight.shape)
    return rank == 2 or (op.startswith("Conv") and rank >= 3)
