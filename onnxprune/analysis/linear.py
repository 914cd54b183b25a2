"""Nodes that multiply an activation by a constant weight, in one form: out[g, o] = sum over c, taps of W[g, o, c, tap] x[g, c, tap].

Repair and reconstruction work on this form; which operator it was, and how its weight lies, stays here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.state import Use
from onnxprune.ir.nodes import attribute

LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BIAS_SLOT = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}


@dataclass(frozen=True)
class Linear:
    """One such node.

    node: index in record.nodes; data: activation it reads; weight: use of its weight; slot: operand that is the activation;
    ids: of the activation's summed axis, None where it is frozen; out_ids: of the output's channel axis; axis, out_axis: where these are.
    """

    node: int
    op: str
    data: str
    out: str
    weight: Use
    slot: int
    groups: int
    axis: int
    out_axis: int
    ids: np.ndarray | None
    out_ids: np.ndarray | None


def linears(analysis: Analysis, *, inside: bool = False) -> list[Linear]:
    """All of them, in graph order; those in bodies, whose activations cannot be asked for, only with `inside`."""
    record = analysis.record
    weights: dict[tuple[int, int], Use] = {(u.node, u.slot): u for u in record.uses}
    found = []
    for index, node in enumerate(record.nodes):
        if (
            node.op_type not in LINEAR_OPS
            or node.domain not in ("", "ai.onnx")
            or not (inside or record.outermost(index))
        ):
            continue
        use = weights.get((index, 1))
        data = record.tensors.get(node.input[0])
        out = record.tensors.get(node.output[0])
        if (
            use is None
            or data is None
            or out is None
            or (index, 0) in weights
            or len(use.axes) < 2
            or node.op_type == "MatMul"
            and len(use.axes) != 2
        ):
            continue
        if node.op_type == "Gemm" and attribute(node, "transA", 0):
            continue
        conv, groups, shape = (
            node.op_type.startswith("Conv"),
            int(attribute(node, "group", 1)),
            analysis.model.weights[use.tensor].shape,
        )
        axis, out_axis = (1, 1) if conv else (len(data.axes) - 1, len(out.axes) - 1)
        if (
            groups < 1
            or shape[0] % groups
            or 0 in shape
            or not (0 <= axis < len(data.axes) and 0 <= out_axis < len(out.axes))
        ):
            continue
        ids, out_ids = record.array(data.axes[axis]), record.array(out.axes[out_axis])
        rows, columns = _sizes(node, shape, groups)
        if (out_ids is None or len(out_ids) == rows) and (
            ids is None or len(ids) == columns
        ):  # otherwise the walk has stopped at this node
            found.append(
                Linear(
                    index,
                    node.op_type,
                    node.input[0],
                    node.output[0],
                    use,
                    0,
                    groups,
                    axis,
                    out_axis,
                    ids,
                    out_ids,
                )
            )
    return found


def _sizes(node: NodeProto, shape: tuple[int, ...], groups: int) -> tuple[int, int]:
    """(outputs, inputs) of a weight of this shape."""
    if node.op_type == "Conv" or node.op_type == "Gemm" and attribute(node, "transB", 0):
        return shape[0], shape[1] * groups
    return shape[1] * groups, shape[0]


def to_matrix(linear: Linear, node: NodeProto, weight: np.ndarray) -> np.ndarray:
    """Weight as (groups, outputs a group, inputs a group, taps)."""
    g = int(attribute(node, "group", 1))
    if linear.op == "Conv":
        return weight.reshape(g, weight.shape[0] // g, weight.shape[1], -1)
    if linear.op == "ConvTranspose":
        return weight.reshape(g, weight.shape[0] // g, weight.shape[1], -1).swapaxes(1, 2)
    if linear.op == "Gemm":
        w = weight if attribute(node, "transB", 0) else weight.T
        return (w * np.asarray(attribute(node, "alpha", 1.0), w.dtype))[None, :, :, None]
    return weight.T[None, :, :, None]


def from_matrix(
    linear: Linear, node: NodeProto, matrix: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """The inverse of `to_matrix`; shape is that of the weight."""
    if linear.op == "Conv":
        return matrix.reshape(shape)
    if linear.op == "ConvTranspose":
        return np.ascontiguousarray(matrix.swapaxes(1, 2)).reshape(shape)
    w = matrix[0, :, :, 0]
    if linear.op == "Gemm":
        w = w / np.asarray(attribute(node, "alpha", 1.0), w.dtype)
        return np.ascontiguousarray(w if attribute(node, "transB", 0) else w.T)
    return np.ascontiguousarray(w.T)


def bias_slot(linear: Linear) -> int | None:
    """Operand of the bias; None where the op has none."""
    return _BIAS_SLOT.get(linear.op)
