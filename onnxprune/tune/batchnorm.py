"""BatchNormalization inserted into a graph that was exported without it, while tuning.

Folded weights differ by orders of magnitude and tolerate only tiny steps. With a normalization
after each convolution that changes nothing (its scale and shift are the standard deviation and
mean of the convolution's output), usual learning rates work. Folding removes it again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.ir.edit import add_weight, replace_nodes
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel
from onnxprune.ir.weights import Weight, from_array
from onnxprune.tune.bridge import OnnxModule
from onnxprune.tune.call import torch

EPSILON = 1e-5
MIN_DEVIATION = 1e-3  # a channel that hardly varies is not scaled up
PARTS = ("scale", "shift", "mean", "var")
_MARK, _BEFORE = "/tuned_bn/", "/tuned_bn/input"


def is_normalized(model: Model) -> bool:
    """Return True if usual learning rates are safe.

    The graph normalizes somewhere, or has no convolutions.
    """
    ops = {n.op_type for n in model.proto.graph.node}
    return not ops & {"Conv", "ConvTranspose"} or any(op.endswith("Normalization") for op in ops)


def find_sites(model: Model) -> list[str]:
    """Return the outputs of convolutions with a weight of their own and no normalization."""
    graph = model.proto.graph
    consumers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node.op_type)
    convolutions = [n for n in graph.node if n.op_type == "Conv"]
    # a shared weight cannot be scaled for one convolution alone
    uses = [n.input[1] for n in convolutions]
    outputs = {o.name for o in graph.output}
    return [
        n.output[0]
        for n in convolutions
        if uses.count(n.input[1]) == 1
        and n.input[1] in model.weights
        and model.weights[n.input[1]].array().dtype == np.float32
        and "BatchNormalization" not in consumers.get(n.output[0], [])
        and n.output[0] not in outputs
    ]


def insert(model: Model, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Model:
    """Return a copy with a BatchNormalization that changes nothing after each convolution.

    Parameters
    ----------
    statistics
        Convolution output -> (mean, variance) of each channel on calibration data, float
        (channels,).
    """
    copy = model.edit()
    nodes = []
    for node in copy.proto.graph.node:
        nodes.append(node)
        output = node.output[0] if node.output else ""
        if output not in statistics:
            continue
        mean, var = (np.asarray(v, np.float32) for v in statistics[output])
        # the same variance divides and multiplies, so that the output does not change
        var = np.maximum(var, np.float32(MIN_DEVIATION**2))
        values = (np.sqrt(var + np.float32(EPSILON)), mean, mean, var)
        # consumers keep reading `output`, which the normalization produces now
        node.output[0] = f"{output}{_BEFORE}"
        names = [f"{output}{_MARK}{part}" for part in PARTS]
        for name, value in zip(names, values, strict=True):
            add_weight(copy, name, from_array(value))
        inputs = [f"{output}{_BEFORE}", *names]
        label = f"{output}{_MARK}node"
        nodes.append(
            helper.make_node("BatchNormalization", inputs, [output], label, epsilon=EPSILON)
        )
    replace_nodes(copy.proto.graph, nodes)
    return copy.freeze()


def fold(tuned: Model, original: Model) -> Model:
    """Return `original`'s graph with the values of `tuned`.

    Inserted normalizations are folded into the convolutions before them. A convolution without a
    bias gets one: the only change to the graph.
    """
    # weights of the inserted normalizations have no place in the original
    values: dict[str, Weight] = {n: w for n, w in tuned.weights.items() if n in original.weights}
    copy = original.edit()
    copy.weights = values
    for node in copy.proto.graph.node:
        parts = [f"{node.output[0]}{_MARK}{p}" for p in PARTS] if node.output else []
        if not parts or parts[0] not in tuned.weights:
            continue
        # folded in float64: the factors differ by orders of magnitude
        scale, shift, mean, var = (tuned.weights[p].array().astype(np.float64) for p in parts)
        factor = scale / np.sqrt(var + EPSILON)
        weight = values[node.input[1]].array()
        bias = values[node.input[2]].array() if _has_bias(node) else np.zeros(len(mean))
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        values[node.input[1]] = from_array(scaled.astype(weight.dtype))
        shifted = (bias - mean) * factor + shift
        values[_add_own_bias(copy, node, weight.dtype)] = from_array(shifted.astype(weight.dtype))
    return copy.freeze()


def measure_moments(
    module: OnnxModule, names: list[str], batches: list[dict[str, torch.Tensor]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return mean and variance of each channel (axis 1) of inner tensors, summed in float64."""
    counts = dict.fromkeys(names, 0)
    sums, squares = {n: np.zeros(1) for n in names}, {n: np.zeros(1) for n in names}
    with torch.no_grad():
        for feeds in batches:
            for name, value in module(feeds, names).items():
                rows = value.movedim(1, 0).flatten(1).double().cpu().numpy()
                counts[name] += rows.shape[1]
                sums[name] = sums[name] + rows.sum(1)
                squares[name] = squares[name] + np.square(rows).sum(1)
    result = {}
    for name in names:
        mean = sums[name] / counts[name]
        result[name] = mean, np.maximum(squares[name] / counts[name] - mean**2, 0)
    return result


def _has_bias(node: NodeProto) -> bool:
    """Return True if a convolution has a bias."""
    return len(node.input) > 2 and bool(node.input[2])


def _add_own_bias(model: EditableModel, node: NodeProto, dtype: np.dtype) -> str:
    """Return the name of a bias that only this convolution reads; add one if needed."""
    uses = [name for n in model.proto.graph.node for name in n.input]
    if _has_bias(node) and uses.count(node.input[2]) == 1:
        return str(node.input[2])
    name = f"{node.output[0]}_bias"
    # the exporter may have used the name
    while name in model.weights:
        name += "_"
    zeros = np.zeros(model.weights[node.input[1]].shape[0], dtype)
    model.proto.graph.initializer.append(_declare(zeros, name))
    # the present bias is shared, or its name is empty
    if len(node.input) > 2:
        node.input[2] = name
    else:
        node.input.append(name)
    return name


def _declare(value: np.ndarray, name: str) -> TensorProto:
    """Return an initializer's name, type and shape; its values are kept outside the graph."""
    tensor = numpy_helper.from_array(value, name)
    tensor.ClearField("raw_data")
    return tensor
