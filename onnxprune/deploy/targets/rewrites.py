"""Rewrites of a graph to operators that a tool flow supports; each changes a copy in place."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto

from onnxprune.ir.edit import add_weight
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import attribute, set_attribute
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.weights import from_array


def whole_image_pool(model: EditableModel, shapes: Shapes) -> None:
    """Rewrite GlobalAveragePool as an AveragePool over the whole image, for NNgen.

    NNgen has two pooling circuits; in simulation, that of GlobalAveragePool computes other integers
    than its own software model (int8, 4x4 image, NNgen 1.3.4), that of AveragePool the same.
    """
    for node in model.proto.graph.node:
        if node.op_type != "GlobalAveragePool":
            continue
        shape = _find_image_shape(shapes, node.input[0])
        if shape is None:
            continue
        node.op_type = "AveragePool"
        # a stride as long as the kernel, see nngen._check_window
        values = {"kernel_shape": shape[2:], "strides": shape[2:], "pads": (0, 0, 0, 0)}
        for name, value in values.items():
            set_attribute(node, name, list(value))


def for_qonnx(model: EditableModel, shapes: Shapes) -> None:
    """Rewrite what qonnx, and with it hls4ml and FINN, cannot read."""
    gemm_bias(model, shapes)
    pool_as_depthwise(model, shapes)


def pool_as_depthwise(model: EditableModel, shapes: Shapes) -> None:
    """Rewrite average pooling as a depthwise convolution with weights 1/size.

    FINN (finn-plus 1.6.1) leaves a multiplication between its units that none of them computes.
    qonnx 1.0.0 converts only Conv, BatchNormalization and MaxPool to channels last; hls4ml 1.3.0
    then rejects AveragePool and silently computes GlobalAveragePool over the wrong axes (top-1
    agreement on 0 of 24 inputs; as a convolution on 24 of 24).
    """
    for node in model.proto.graph.node:
        if node.op_type not in ("GlobalAveragePool", "AveragePool"):
            continue
        shape = _find_image_shape(shapes, node.input[0])
        # pads that do not count would need a divisor per position
        if shape is None or not _is_convolution(node):
            continue
        kernel = attribute(node, "kernel_shape", shape[2:])
        conv = {
            "group": shape[1],
            "kernel_shape": list(kernel),
            "strides": attribute(node, "strides", [1, 1]),
            "dilations": [1, 1],
            "pads": attribute(node, "pads", [0, 0, 0, 0]),
        }
        dtype = onnx.helper.tensor_dtype_to_np_dtype(shapes.dtype(node.input[0]))
        # pads are zeros in both, so that a mean with counted pads is this convolution
        weight = np.full((shape[1], 1, *kernel), 1 / np.prod(kernel), dtype)
        name = f"{node.output[0]}_mean"
        _add_initializer(model, name, weight)
        node.op_type = "Conv"
        node.input.append(name)
        # attributes of poolings are not valid on Conv
        del node.attribute[:]
        for key, value in conv.items():
            set_attribute(node, key, value)


def gemm_bias(model: EditableModel, shapes: Shapes) -> None:
    """Add a bias of zeros to every Gemm without one; qonnx 1.0.0 requires it."""
    for node in model.proto.graph.node:
        if node.op_type != "Gemm" or len(node.input) != 2 or node.input[1] not in model.weights:
            continue
        name = f"{node.output[0]}_no_bias"
        weight = model.weights[node.input[1]]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(weight.dtype)
        # weights are (out, in), see prepare.make_explicit
        _add_initializer(model, name, np.zeros(weight.shape[0], dtype))
        node.input.append(name)


def _find_image_shape(shapes: Shapes, tensor: str) -> tuple[int, ...] | None:
    """Return the static shape of a tensor with four axes, else None."""
    shape = shapes.shape(tensor)
    if shape is None or len(shape) != 4:
        return None
    static = tuple(d for d in shape if isinstance(d, int))
    return static if len(static) == 4 else None


def _is_convolution(node: NodeProto) -> bool:
    """Return True if every output of an average pooling divides by the same size."""
    padded = any(attribute(node, "pads", ()))
    if padded and not attribute(node, "count_include_pad", 0):
        return False
    # windows that end outside the image divide by fewer pixels
    return not attribute(node, "ceil_mode", 0) and attribute(node, "auto_pad", "NOTSET") == "NOTSET"


def _add_initializer(model: EditableModel, name: str, values: np.ndarray) -> None:
    """Add an initializer in place."""
    add_weight(model, name, from_array(values))
