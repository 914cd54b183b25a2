"""BatchNormalization put back into a graph that was exported without it, for the time of tuning.

Folded weights spread over orders of magnitude and take only tiny steps. With a normalization behind each convolution, set so that it changes nothing
(scale and shift are the standard deviation and mean of what the convolution gives), usual rates work. Folding puts the result back where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.ir.edit import replace_nodes
from onnxprune.ir.io import Model
from onnxprune.ir.weights import Weight, from_array
from onnxprune.tune.bridge import OnnxModule
from onnxprune.tune.call import torch

EPSILON = 1e-5
LEAST_DEVIATION = 1e-3  # a channel that hardly moves is not blown up
PARTS = ("scale", "shift", "mean", "var")


def normalized(model: Model) -> bool:
    """Whether the graph normalizes anywhere, so that usual learning rates are safe; a graph without convolutions counts as such."""
    ops = {n.op_type for n in model.proto.graph.node}
    return not ops & {"Conv", "ConvTranspose"} or any(op.endswith("Normalization") for op in ops)


def sites(model: Model) -> list[str]:
    """Outputs of the convolutions that have a weight of their own and no normalization behind them."""
    graph = model.proto.graph
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    uses = [n.input[1] for n in graph.node if n.op_type == "Conv"]
    return [
        n.output[0]
        for n in graph.node
        if n.op_type == "Conv"
        and uses.count(n.input[1]) == 1
        and n.input[1] in model.weights
        and model.weights[n.input[1]].array().dtype == np.float32
        and "BatchNormalization" not in readers.get(n.output[0], [])
        and n.output[0] not in {o.name for o in graph.output}
    ]


def insert(model: Model, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Model:
    """A copy with a BatchNormalization that changes nothing behind each of these convolutions.

    Parameters
    ----------
    statistics
        Convolution output -> (mean, variance) of each channel on calibration data, float (channels,).
    """
    copy, weights = model.edit(), dict(model.weights)
    nodes = []
    for node in copy.proto.graph.node:
        nodes.append(node)
        output = node.output[0] if node.output else ""
        if output not in statistics:
            continue
        mean, var = (np.asarray(v, np.float32) for v in statistics[output])
        var = np.maximum(var, np.float32(LEAST_DEVIATION**2))
        node.output[0] = f"{output}{_BEFORE}"
        names = [f"{output}{_MARK}{p}" for p in PARTS]
        for name, value in zip(
            names, (np.sqrt(var + np.float32(EPSILON)), mean, mean, var), strict=False
        ):
            weights[name] = from_array(value)
            copy.proto.graph.initializer.append(_bare(value, name))
        inputs = [f"{output}{_BEFORE}", *names]
        nodes.append(
            helper.make_node(
                "BatchNormalization", inputs, [output], f"{output}{_MARK}node", epsilon=EPSILON
            )
        )
    replace_nodes(copy.proto.graph, nodes)
    return replace(copy, weights=weights)


def fold(tuned: Model, original: Model) -> Model:
    """`original`'s graph with the values of `tuned`, whose inserted normalizations go into the convolutions before them.

    A convolution without a bias gets one: the only change to the graph.
    """
    values: dict[str, Weight] = {n: w for n, w in tuned.weights.items() if n in original.weights}
    copy = replace(original.edit(), weights=values)
    for node in copy.proto.graph.node:
        parts = [f"{node.output[0]}{_MARK}{p}" for p in PARTS] if node.output else []
        if not parts or parts[0] not in tuned.weights:
            continue
        scale, shift, mean, var = (tuned.weights[p].array().astype(np.float64) for p in parts)
        factor = scale / np.sqrt(var + EPSILON)
        weight = values[node.input[1]].array()
        bias = values[node.input[2]].array() if _has_bias(node) else np.zeros(len(mean))
        values[node.input[1]] = from_array(
            (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(weight.dtype)
        )
        values[_own_bias(copy, node, weight.dtype)] = from_array(
            ((bias - mean) * factor + shift).astype(weight.dtype)
        )
    return copy


def moments(
    module: OnnxModule, names: list[str], batches: list[dict[str, torch.Tensor]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of each channel (axis 1) of inner tensors, accumulated in float64."""
    counts = dict.fromkeys(names, 0)
    sums, squares = {n: np.zeros(1) for n in names}, {n: np.zeros(1) for n in names}
    with torch.no_grad():
        for feeds in batches:
            for name, value in module(feeds, names).items():
                rows = value.movedim(1, 0).flatten(1).double().cpu().numpy()
                counts[name] += rows.shape[1]
                sums[name] = sums[name] + rows.sum(1)
                squares[name] = squares[name] + np.square(rows).sum(1)
    means = {n: sums[n] / counts[n] for n in names}
    return {n: (means[n], np.maximum(squares[n] / counts[n] - means[n] ** 2, 0)) for n in names}


def _has_bias(node: NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])


def _own_bias(model: Model, node: NodeProto, dtype: np.dtype) -> str:
    """Name of a bias that this convolution alone reads; made where it has none or shares one."""
    if (
        _has_bias(node)
        and sum(list(n.input).count(node.input[2]) for n in model.proto.graph.node) == 1
    ):
        return str(node.input[2])
    name = f"{node.output[0]}_bias"
    while name in model.weights:
        name += "_"
    model.proto.graph.initializer.append(
        _bare(np.zeros(model.weights[node.input[1]].shape[0], dtype), name)
    )
    if len(node.input) > 2:
        node.input[2] = name
    else:
        node.input.append(name)
    return name


def _bare(value: np.ndarray, name: str) -> TensorProto:
    """An initializer's name, type and shape; the values are kept beside the graph."""
    tensor = numpy_helper.from_array(value, name)
    tensor.ClearField("raw_data")
    return tensor


_MARK, _BEFORE = "/tuned_bn/", "/tuned_bn/input"
