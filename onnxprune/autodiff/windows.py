"""Gradients of pooling and resizing. What is linear and separable is a small matrix an axis, whatever its padding rules."""

from __future__ import annotations

import itertools
import math

import numpy as np
from onnx import TensorProto, helper

from onnxprune.autodiff.contractions import Windows, windows
from onnxprune.autodiff.movement import along
from onnxprune.autodiff.step import NoGradient, Step
from onnxprune.autodiff.tape import Value, total
from onnxprune.errors import OnnxpruneError
from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session


def average_pool(s: Step) -> list[Value | None]:
    """AveragePool: the mean over a box is a banded matrix along each axis."""
    kernel = s.attribute("kernel_shape")
    w = windows(s, kernel, s.x.shape[2:], s.y.shape[2:])
    pads = (
        s.attribute("pads", [0] * 2 * len(kernel))
        if s.attribute("auto_pad", "NOTSET") == "NOTSET"
        else [*w.before, *(max(0, r) for r in w.rest)]
    )
    grad = s.grad
    for i in range(len(kernel)):
        grad = along(
            grad,
            i + 2,
            _mean_matrix(
                w, i, pads[len(kernel) + i] if s.attribute("count_include_pad", 0) else None
            ).T,
        )
    return [grad]


def global_average_pool(s: Step) -> list[Value | None]:
    return [(s.grad * (1.0 / math.prod(s.x.shape[2:]))).expand(s.x.shape)]


def global_max_pool(s: Step) -> list[Value | None]:
    """GlobalMaxPool: to the largest value; equal ones share."""
    return [largest(s.x, s.y, s.grad, range(2, len(s.x.shape)))]


def largest(x: Value, y: Value, g: Value, axes: range | list[int]) -> Value:
    """Gradient of a maximum or minimum over axes (y, g with lengths 1 there); equal values share."""
    mask = x.equals(y).cast(g.dtype)
    return mask * (g / mask.reduce("ReduceSum", axes))


def max_pool(s: Step) -> list[Value | None]:
    """MaxPool: scattered to the indices that the forward node gives.

    Windows that overlap may choose the same value. Those of every p-th position do not overlap, so p scatters an axis are summed.
    """
    if s.outputs[1] is None or s.attribute("storage_order", 0):
        raise NoGradient("the indices of MaxPool are not available")
    w = windows(s, s.attribute("kernel_shape"), s.x.shape[2:], s.y.shape[2:])
    periods = [
        min(-(-e // st), n) for e, st, n in zip(w.extent, w.strides, w.outputs, strict=False)
    ]
    parts = []
    for offsets in itertools.product(*map(range, periods)):
        indices, updates = s.outputs[1], s.grad
        for axis, (offset, period) in enumerate(zip(offsets, periods, strict=False), start=2):
            indices, updates = (
                v.slice(axis, offset, v.shape[axis], period) for v in (indices, updates)
            )
        count = math.prod(updates.shape)
        zeros = s.tape.filled([math.prod(s.x.shape)], 0.0, s.grad.dtype)
        parts.append(zeros.scatter(indices.reshape([count]), updates.reshape([count]), 0))
    return [total(parts).reshape(s.x.shape)]


def resize(s: Step) -> list[Value | None]:
    """Resize, Upsample: linear along each axis; onnxruntime's own result on an identity is the matrix."""
    s.only_first()
    if (
        s.attribute("keep_aspect_ratio_policy", "stretch") != "stretch"
        or s.attribute("coordinate_transformation_mode") == "tf_crop_and_resize"
    ):
        raise NoGradient("only the policy stretch without crop is supported")
    rank = len(s.x.shape)
    axes = [a % rank for a in s.attribute("axes", list(range(rank)))]
    scales = (
        s.numbers(1 if s.node.op_type == "Upsample" else 2, "scales")
        if len(s.node.input) > 1 or s.attribute("scales")
        else None
    )
    if s.node.op_type == "Resize" and s.tape.opset < 11:
        scales = s.numbers(1)
    grad = s.grad
    for place, axis in enumerate(axes):
        size, out = s.x.shape[axis], s.y.shape[axis]
        scale = float(scales[place]) if scales else None
        if size != out or scale not in (None, 1.0):
            grad = along(grad, axis, _resize_matrix(s, size, out, scale).T)
    return [grad]


def _mean_matrix(w: Windows, axis: int, pad_after: int | None) -> np.ndarray:
    """(in, out): 1 / count where an output reads an input. pad_after: padding at the end where padding counts, else None."""
    size = w.inputs[axis]
    matrix = np.zeros((size, w.outputs[axis]))
    for o in range(w.outputs[axis]):
        reads = o * w.strides[axis] - w.before[axis] + w.dilations[axis] * np.arange(w.kernel[axis])
        inside = reads[(reads >= 0) & (reads < size)]
        count = len(inside) if pad_after is None else int((reads < size + pad_after).sum())
        matrix[inside, o] = 1.0 / max(count, 1)
    return matrix


def _resize_matrix(s: Step, size: int, out: int, scale: float | None) -> np.ndarray:
    """(in, out) matrix of the node along one axis, by running it on an identity."""
    given = [1.0, 1.0, 1.0, scale] if scale is not None else None
    keep = [
        a for a in s.node.attribute if a.name not in ("axes", "scales", "keep_aspect_ratio_policy")
    ]
    initializers = (
        [] if given is None else [helper.make_tensor("scales", TensorProto.FLOAT, [4], given)]
    )
    if given is None:
        initializers = [helper.make_tensor("sizes", TensorProto.INT64, [4], [size, 1, 1, out])]
    two = s.node.op_type == "Upsample" or s.tape.opset < 11
    inputs = (
        ["x", "scales"]
        if two
        else ["x", "", "scales"]
        if given is not None
        else ["x", "", "", "sizes"]
    )
    if s.tape.opset in (11, 12) and not two:
        inputs[1] = "roi"
        initializers.append(helper.make_tensor("roi", TensorProto.FLOAT, [0], []))
        if given is None:
            inputs[2] = "none"
            initializers.append(helper.make_tensor("none", TensorProto.FLOAT, [0], []))
    node = helper.make_node(s.node.op_type, inputs, ["y"])
    node.attribute.extend(keep)
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, 1, 1, size])
    graph = helper.make_graph(
        [node], "resize", [info], [helper.make_empty_tensor_value_info("y")], initializers
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", s.tape.opset)], ir_version=8
    )
    try:
        found = Session(load(model)).run(
            {"x": np.eye(size, dtype=np.float32).reshape(size, 1, 1, size)}
        )["y"]
    except OnnxpruneError as problem:
        raise NoGradient(f"its matrix cannot be computed: {problem.message}") from problem
    if found.shape[-1] != out:
        raise NoGradient(f"its matrix has {found.shape[-1]} columns instead of {out}")
    return found.reshape(size, out)
