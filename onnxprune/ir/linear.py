"""Layout of the weights of Conv, ConvTranspose, Gemm and MatMul.

    out[g, o] = sum over c, taps of W[g, o, c, tap] x[g, c, tap]

Whatever the operator, a weight is a matrix per group in this form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import NodeProto

from onnxprune.ir.nodes import attribute

LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class WeightLayout:
    """How an operator stores its weight.

    Attributes
    ----------
    op
        One of LINEAR_OPS.
    groups
        Groups of a convolution; 1 for other operators.
    transposed
        Whether a Gemm stores its weight as (outputs, inputs).
    alpha
        Factor by which a Gemm multiplies its weight.
    """

    op: str
    groups: int = 1
    transposed: bool = False
    alpha: float = 1.0

    @staticmethod
    def of(node: NodeProto) -> WeightLayout:
        """Return the layout of a node whose operator is one of LINEAR_OPS."""
        op = str(node.op_type)
        if op == "Gemm":
            transposed = bool(attribute(node, "transB", 0))
            return WeightLayout(op, 1, transposed, float(attribute(node, "alpha", 1.0)))
        return WeightLayout(op, int(attribute(node, "group", 1)) if op != "MatMul" else 1)

    @property
    def convolution(self) -> bool:
        """Whether the operator is a convolution."""
        return self.op in ("Conv", "ConvTranspose")

    @property
    def outputs_first(self) -> bool:
        """Whether the first axis of the weight is that of the outputs, not of the inputs."""
        return self.op == "Conv" or self.transposed

    @property
    def bias_slot(self) -> int | None:
        """Operand of the bias; None if the operator has none."""
        return None if self.op == "MatMul" else 2

    def axes(self, rank: int) -> tuple[int, int]:
        """Return the axes of the inputs and of the outputs of a weight; a MatMul may have more."""
        if self.op == "MatMul":
            return rank - 2, rank - 1
        return (1, 0) if self.outputs_first else (0, 1)

    def outputs(self, shape: Sequence[int]) -> int:
        """Return the number of output channels of a weight of this shape."""
        # axis 1 of a convolution's weight counts the channels of one group; others have one group
        axis = self.axes(len(shape))[1]
        return shape[axis] * (self.groups if axis == 1 else 1)

    def inputs(self, shape: Sequence[int]) -> int:
        """Return the number of input channels of a weight of this shape."""
        axis = self.axes(len(shape))[0]
        return shape[axis] * (self.groups if axis == 1 else 1)

    def resized(self, shape: Sequence[int], inputs: int, outputs: int) -> tuple[int, ...]:
        """Return the shape of a weight with other numbers of channels."""
        sizes = list(shape)
        for axis, channels in zip(self.axes(len(sizes)), (inputs, outputs), strict=True):
            # the second axis of a convolution's weight is that of one group
            sizes[axis] = channels // (self.groups if axis == 1 else 1)
        return tuple(sizes)

    def taps(self, shape: Sequence[int]) -> int:
        """Return the number of kernel positions of a weight of this shape."""
        return prod(shape[2:])

    def to_matrix(self, weight: np.ndarray) -> np.ndarray:
        """Return a weight as (groups, outputs per group, inputs per group, taps)."""
        if self.op == "Conv":
            return weight.reshape(self.groups, len(weight) // self.groups, weight.shape[1], -1)
        if self.op == "ConvTranspose":
            blocks = weight.reshape(self.groups, len(weight) // self.groups, weight.shape[1], -1)
            return blocks.swapaxes(1, 2)
        matrix = weight if self.transposed else weight.T
        # alpha is part of the weight here, so that the formula above holds for Gemm too
        if self.alpha != 1:
            matrix = matrix * np.asarray(self.alpha, matrix.dtype)
        return matrix[None, :, :, None]

    def from_matrix(self, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return the weight of a matrix: the inverse of `to_matrix`.

        Parameters
        ----------
        matrix
            (groups, outputs per group, inputs per group, taps).
        shape
            Shape of the weight.
        """
        if self.op == "Conv":
            return matrix.reshape(shape)
        if self.op == "ConvTranspose":
            return np.ascontiguousarray(matrix.swapaxes(1, 2)).reshape(shape)
        weight = matrix[0, :, :, 0]
        if self.alpha != 1:
            # divided out again, since the node still multiplies by it
            weight = weight / np.asarray(self.alpha, weight.dtype)
        return np.ascontiguousarray(weight if self.transposed else weight.T)
