"""Gradients of pooling and resizing.

Operators that are linear and separable become one small matrix per axis, whatever their padding.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from onnx import TensorProto, helper

from onnxprune.autodiff.movement import along
from onnxprune.autodiff.step import BackwardStep, NoGradient
from onnxprune.autodiff.tape import Value, total
from onnxprune.autodiff.windows import Windows, windows
from onnxprune.errors import OnnxpruneError
from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session


def average_pool(s: BackwardStep) -> list[Value | None]:
    """Differentiate AveragePool: the mean over a box is a banded matrix along each axis."""
    # the matrix depends on sizes only: padding and counts are resolved here
    kernel = s.attribute("kernel_shape")
    w = windows(s, kernel, s.x.shape[2:], s.y.shape[2:])
    rank = len(kernel)
    if s.attribute("auto_pad", "NOTSET") == "NOTSET":
        after = s.attribute("pads", [0] * 2 * rank)[rank:]
    else:
        # auto_pad leaves the padding to the lengths
        after = [max(0, r) for r in w.rest]
    grad = s.grad
    for i in range(rank):
        counted = after[i] if s.attribute("count_include_pad", 0) else None
        grad = along(grad, i + 2, _build_mean_matrix(w, i, counted).T)
    return [grad]


def global_average_pool(s: BackwardStep) -> list[Value | None]:
    """Differentiate GlobalAveragePool."""
    return [(s.grad * (1.0 / math.prod(s.x.shape[2:]))).expand(s.x.shape)]


def global_max_pool(s: BackwardStep) -> list[Value | None]:
    """Differentiate GlobalMaxPool; equal largest values share."""
    return [largest(s.x, s.y, s.grad, range(2, len(s.x.shape)))]


def largest(x: Value, y: Value, g: Value, axes: range | list[int]) -> Value:
    """Return the gradient of a maximum or minimum over axes; equal values share it.

    `y` and `g` have length 1 along these axes.
    """
    mask = x.equals(y).cast(g.dtype)
    return mask * (g / mask.reduce("ReduceSum", axes))


def max_pool(s: BackwardStep) -> list[Value | None]:
    """Differentiate MaxPool: scatter to the indices that the forward node returns.

    Overlapping windows may select the same value. Windows at every p-th position do not overlap:
    p scatters per axis are summed.
    """
    if s.outputs[1] is None or s.attribute("storage_order", 0):
        raise NoGradient("the indices of MaxPool are not available")
    w = windows(s, s.attribute("kernel_shape"), s.x.shape[2:], s.y.shape[2:])
    periods = [
        min(-(-extent // stride), n)
        for extent, stride, n in zip(w.extent, w.strides, w.outputs, strict=True)
    ]
    parts = []
    # ScatterElements sums repeated indices only from opset 16 on
    for offsets in itertools.product(*map(range, periods)):
        indices, updates = s.outputs[1], s.grad
        for axis, (offset, period) in enumerate(zip(offsets, periods, strict=True), start=2):
            indices = indices.slice(axis, offset, indices.shape[axis], period)
            updates = updates.slice(axis, offset, updates.shape[axis], period)
        count = math.prod(updates.shape)
        zeros = s.tape.filled([math.prod(s.x.shape)], 0.0, s.grad.dtype)
        parts.append(zeros.scatter(indices.reshape([count]), updates.reshape([count]), 0))
    return [total(parts).reshape(s.x.shape)]


def resize(s: BackwardStep) -> list[Value | None]:
    """Differentiate Resize and Upsample, which are linear along each axis."""
    s.only_first()
    stretches = s.attribute("keep_aspect_ratio_policy", "stretch") == "stretch"
    if not stretches or s.attribute("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise NoGradient("only the policy stretch without crop is supported")
    rank = len(s.x.shape)
    axes = [a % rank for a in s.attribute("axes", list(range(rank)))]
    scales = None
    if s.node.op_type == "Resize" and s.tape.opset < 11:
        scales = s.numbers(1)
    elif len(s.node.input) > 1 or s.attribute("scales"):
        scales = s.numbers(1 if s.node.op_type == "Upsample" else 2, "scales")
    grad = s.grad
    for i, axis in enumerate(axes):
        size, out = s.x.shape[axis], s.y.shape[axis]
        scale = float(scales[i]) if scales else None
        # an axis that is not resized has an identity matrix
        if size != out or scale not in (None, 1.0):
            grad = along(grad, axis, _build_resize_matrix(s, size, out, scale).T)
    return [grad]


def _build_mean_matrix(w: Windows, axis: int, pad_after: int | None) -> np.ndarray:
    """Return the matrix (in, out) of an average: 1 / count for every input of an output.

    Parameters
    ----------
    pad_after
        Padding at the end if padding counts, else None.
    """
    size = w.inputs[axis]
    matrix = np.zeros((size, w.outputs[axis]))
    for o in range(w.outputs[axis]):
        reads = o * w.strides[axis] - w.before[axis] + w.dilations[axis] * np.arange(w.kernel[axis])
        inside = reads[(reads >= 0) & (reads < size)]
        # with ceil_mode a window may exceed the padding, and what is beyond does not count
        count = len(inside) if pad_after is None else int((reads < size + pad_after).sum())
        matrix[inside, o] = 1.0 / max(count, 1)
    return matrix


def _build_resize_matrix(s: BackwardStep, size: int, out: int, scale: float | None) -> np.ndarray:
    """Return the matrix (in, out) of the node along one axis, by running it on an identity.

    Parameters
    ----------
    scale
        Scale of the axis; None if the node takes sizes.
    """
    inputs, initializers = _build_resize_inputs(s, size, out, scale)
    node = helper.make_node(s.node.op_type, inputs, ["y"])
    skipped = ("axes", "scales", "keep_aspect_ratio_policy")
    node.attribute.extend(a for a in s.node.attribute if a.name not in skipped)
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, 1, 1, size])
    result = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph([node], "resize", [info], [result], initializers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", s.tape.opset)], ir_version=8
    )
    # one sample per unit vector, so that the output's rows are the matrix
    identity = np.eye(size, dtype=np.float32).reshape(size, 1, 1, size)
    try:
        matrix = Session(load(model)).run({"x": identity})["y"]
    except OnnxpruneError as problem:
        raise NoGradient(f"its matrix cannot be computed: {problem.message}") from problem
    if matrix.shape[-1] != out:
        raise NoGradient(f"its matrix has {matrix.shape[-1]} columns instead of {out}")
    return matrix.reshape(size, out)


def _build_resize_inputs(
    s: BackwardStep, size: int, out: int, scale: float | None
) -> tuple[list[str], list[TensorProto]]:
    """Return input names and constants of a Resize of the last of four axes."""
    if scale is None:
        name = "sizes"
        constants = [helper.make_tensor(name, TensorProto.INT64, [4], [size, 1, 1, out])]
    else:
        name = "scales"
        constants = [helper.make_tensor(name, TensorProto.FLOAT, [4], [1.0, 1.0, 1.0, scale])]
    if s.node.op_type == "Upsample" or s.tape.opset < 11:
        return ["x", "scales"], constants
    # x, roi, scales, sizes; roi and scales became optional in opset 13
    inputs = ["x", "", "scales"] if name == "scales" else ["x", "", "", "sizes"]
    if s.tape.opset < 13:
        inputs[1] = "roi"
        constants.append(helper.make_tensor("roi", TensorProto.FLOAT, [0], []))
        if name == "sizes":
            inputs[2] = "none"
            constants.append(helper.make_tensor("none", TensorProto.FLOAT, [0], []))
    return inputs, constants
