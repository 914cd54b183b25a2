"""The same function in the operators that a flow has; each changes a copy in place."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx

from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute, set_attribute
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.weights import from_array


def whole_image_pool(model: Model, shapes: Shapes) -> None:
    """GlobalAveragePool as an AveragePool over the whole image, for NNgen.

    It has two pooling circuits, and that of GlobalAveragePool gave other integers than its own software model in simulation
    (int8, 4x4 image, NNgen 1.3.4); this one equals it.
    """
    for node in model.proto.graph.node:
        shape = shapes.shape(node.input[0]) if node.op_type == "GlobalAveragePool" else None
        if shape is not None and len(shape) == 4 and all(isinstance(d, int) for d in shape):
            node.op_type = "AveragePool"
            for name, value in (
                ("kernel_shape", shape[2:]),
                ("strides", shape[2:]),
                ("pads", (0, 0, 0, 0)),
            ):
                set_attribute(node, name, list(value))


def for_qonnx(model: Model, shapes: Shapes) -> None:
    """What qonnx, and hls4ml and FINN behind it, do not read as it stands."""
    gemm_bias(model, shapes)
    pool_as_depthwise(model, shapes)


def pool_as_depthwise(model: Model, shapes: Shapes) -> None:
    """Average pooling as a depthwise convolution with weights 1/size.

    FINN (finn-plus 1.6.1) leaves a multiplication between its units, which none of them computes. qonnx 1.0.0 turns only Conv, BatchNormalization and MaxPool to channels last; hls4ml 1.3.0 then refuses AveragePool, and computes
    GlobalAveragePool over the wrong axes without a word (argmax right on 0 of 24 inputs; as a convolution on 24 of 24).
    """
    for node in model.proto.graph.node:
        shape = (
            shapes.shape(node.input[0])
            if node.op_type in ("GlobalAveragePool", "AveragePool")
            else None
        )
        if shape is None or len(shape) != 4 or not all(isinstance(d, int) for d in shape):
            continue
        padded = any(attribute(node, "pads", ())) and not attribute(node, "count_include_pad", 0)
        if (
            padded
            or attribute(node, "ceil_mode", 0)
            or attribute(node, "auto_pad", "NOTSET") != "NOTSET"
        ):
            continue
        kernel = attribute(node, "kernel_shape", shape[2:])
        conv = {
            "group": shape[1],
            "kernel_shape": list(kernel),
            "strides": attribute(node, "strides", [1, 1]),
            "dilations": [1, 1],
            "pads": attribute(node, "pads", [0, 0, 0, 0]),
        }
        weight = np.full(
            (shape[1], 1, *kernel),
            1 / np.prod(kernel),
            onnx.helper.tensor_dtype_to_np_dtype(shapes.dtype(node.input[0])),
        )
        _add(model, f"{node.output[0]}_mean", weight)
        node.op_type = "Conv"
        node.input.append(f"{node.output[0]}_mean")
        del node.attribute[:]
        for name, value in conv.items():
            set_attribute(node, name, value)


def gemm_bias(model: Model, shapes: Shapes) -> None:
    """A bias of zeros for every Gemm without one: qonnx 1.0.0 takes it for granted."""
    for node in model.proto.graph.node:
        if node.op_type != "Gemm" or len(node.input) != 2 or node.input[1] not in model.weights:
            continue
        name = f"{node.output[0]}_no_bias"
        weight = model.weights[node.input[1]]
        _add(
            model,
            name,
            np.zeros(weight.shape[0], onnx.helper.tensor_dtype_to_np_dtype(weight.dtype)),
        )
        node.input.append(name)


def _add(model: Model, name: str, values: np.ndarray) -> None:
    """A new initializer."""
    weight = from_array(values)
    model.proto.graph.initializer.add(name=name, data_type=weight.dtype, dims=values.shape)
    cast(dict[str, Any], model.weights)[name] = weight
