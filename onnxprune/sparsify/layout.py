"""Weights of linear layers as matrices.

Rows are outputs. Columns are the values that one output reads: channels vary slowest, taps fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from onnxprune.errors import unknown
from onnxprune.ir.io import Model
from onnxprune.ir.linear import LINEAR_OPS, WeightLayout
from onnxprune.ir.nodes import attribute

OPS = LINEAR_OPS


@dataclass(frozen=True)
class LinearWeight:
    """A weight that can be made sparse.

    Attributes
    ----------
    tensor : str
        Name of the weight.
    nodes : tuple of NodeProto
        Nodes that read it, all in the same way.
    """

    tensor: str
    nodes: tuple[NodeProto, ...]

    @property
    def op(self) -> str:
        """Operator of its nodes."""
        return str(self.nodes[0].op_type)

    @property
    def layout(self) -> WeightLayout:
        """How the operator stores the weight; rows do not include `alpha`."""
        return replace(WeightLayout.of(self.nodes[0]), alpha=1.0)

    @property
    def alpha(self) -> float:
        """Factor by which a Gemm multiplies its weight, but not its bias."""
        return WeightLayout.of(self.nodes[0]).alpha

    @property
    def groups(self) -> int:
        """Groups of the convolution; 1 for other operators."""
        return self.layout.groups

    def to_rows(self, values: np.ndarray) -> np.ndarray:
        """Return the weight as (groups, outputs per group, inputs per group * taps)."""
        matrix = self._reorder_taps(self.layout.to_matrix(values))
        return matrix.reshape(*matrix.shape[:2], -1)

    def from_rows(self, rows: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return the contiguous weight of these rows, in their type: the inverse of `to_rows`."""
        matrix = self._reorder_taps(rows.reshape(*rows.shape[:2], -1, self.taps(shape)))
        values = self.layout.from_matrix(matrix, tuple(shape))
        return np.ascontiguousarray(values).astype(rows.dtype, copy=False)

    def taps(self, shape: Sequence[int]) -> int:
        """Return the number of columns per input channel."""
        return self.layout.taps(shape)

    def _reorder_taps(self, matrix: np.ndarray) -> np.ndarray:
        """Reverse the taps of a ConvTranspose, as in the equivalent convolution."""
        return matrix[..., ::-1] if self.op == "ConvTranspose" else matrix

    def private_bias(self, model: Model) -> str | None:
        """Return the name of the bias if only this weight's single node reads it, else None."""
        node = self.nodes[0]
        if len(self.nodes) != 1 or self.op == "MatMul" or len(node.input) < 3:
            return None
        # beta must not scale a refitted bias, which is divided by alpha
        if attribute(node, "beta", 1.0) != 1 or not self.alpha:
            return None
        name = str(node.input[2])
        # uses, not nodes: one node may read a tensor twice
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
                # with transA the rows of the input are not samples
                as_weight = as_weight and not attribute(node, "transA", 0)
                # an empty node stands for any other use, which keeps the weight out
                consumers.setdefault(name, []).append(node if as_weight else NodeProto())
    result = []
    for name, nodes in consumers.items():
        # a factor is no difference in layout: rows do not include it
        layouts = {replace(WeightLayout.of(n), alpha=1.0) for n in nodes}
        if len(layouts) == 1 and nodes[0].op_type and _is_linear(model, name, nodes[0].op_type):
            result.append(LinearWeight(name, tuple(nodes)))
    return result


def _is_linear(model: Model, name: str, op: str) -> bool:
    """Return True for a float weight of the rank that the operator takes."""
    weight = model.weights[name]
    if weight.array().dtype.kind != "f":
        return False
    rank = len(weight.shape)
    return rank == 2 or (op.startswith("Conv") and rank >= 3)
