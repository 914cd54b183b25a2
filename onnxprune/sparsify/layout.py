"""Weights as matrices: rows are outputs, columns are what one output reads, channels slowest and taps fastest."""

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
class Target:
    """A weight that can be made sparse. nodes: that read it, all in the same way; groups: of the convolution."""

    tensor: str
    nodes: tuple[NodeProto, ...]
    groups: int = 1

    @property
    def op(self) -> str:
        """Of its nodes."""
        return str(self.nodes[0].op_type)

    @property
    def transposed(self) -> bool:
        """Whether a Gemm has its weight as (outputs, inputs)."""
        return bool(attribute(self.nodes[0], "transB", 0))

    def rows(self, weight: np.ndarray) -> np.ndarray:
        """The weight as (groups, outputs of a group, inputs of a group * taps)."""
        if self.op == "Conv":
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        if self.op == "ConvTranspose":
            inputs, outputs = weight.shape[0] // self.groups, weight.shape[1]
            blocks = weight.reshape(self.groups, inputs, outputs, -1)[
                ..., ::-1
            ]  # the taps of the convolution that it is
            return blocks.transpose(0, 2, 1, 3).reshape(self.groups, outputs, -1)
        return (weight if self.transposed else weight.T)[None]

    def weight(self, rows: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The inverse of `rows`, contiguous."""
        if self.op == "Conv":
            return np.ascontiguousarray(rows.reshape(shape))
        if self.op == "ConvTranspose":
            blocks = rows.reshape(self.groups, shape[1], shape[0] // self.groups, -1).transpose(
                0, 2, 1, 3
            )[..., ::-1]
            return np.ascontiguousarray(blocks.reshape(shape))
        return np.ascontiguousarray(rows[0] if self.transposed else rows[0].T)

    def taps(self, shape: Sequence[int]) -> int:
        """Columns of one input channel."""
        return int(np.prod(shape[2:])) if self.op.startswith("Conv") else 1

    def bias(self, model: Model) -> str | None:
        """Name of the bias that this weight's one node alone reads, if there is such a one."""
        if (
            len(self.nodes) != 1
            or self.op == "MatMul"
            or len(self.nodes[0].input) < 3
            or attribute(self.nodes[0], "beta", 1.0) != 1
        ):
            return None
        name = str(self.nodes[0].input[2])
        uses = sum(list(n.input).count(name) for n in model.proto.graph.node)
        return (
            name
            if name in model.weights and uses == 1 and len(model.weights[name].shape) == 1
            else None
        )


def targets(model: Model, ops: Sequence[str] = ("Conv",)) -> list[Target]:
    """Float weights of these operators in graph order; a weight that is read in two ways is left out.

    Raises
    ------
    UsageError
        An operator that has no weights of that kind.
    """
    wrong = next((op for op in ops if op not in OPS), None)
    if wrong is not None:
        raise unknown("operator", wrong, OPS)
    found: dict[str, list[NodeProto]] = {}
    for node in model.proto.graph.node:
        for position, name in enumerate(node.input):
            if name in model.weights:
                found.setdefault(name, []).append(
                    node
                    if node.op_type in ops and position == 1 and not attribute(node, "transA", 0)
                    else NodeProto()
                )
    out = []
    for name, nodes in found.items():
        ways = {(n.op_type, attribute(n, "group", 1), attribute(n, "transB", 0)) for n in nodes}
        weight = model.weights[name]
        least = 3 if nodes[0].op_type.startswith("Conv") else 2
        if (
            len(ways) == 1
            and nodes[0].op_type
            and weight.array().dtype.kind == "f"
            and (len(weight.shape) == 2 or least == 3 <= len(weight.shape))
        ):
            out.append(Target(name, tuple(nodes), attribute(nodes[0], "group", 1)))
    return out
