"""Linear layers written as two: an orthogonal change of basis of their outputs, and its inverse.

    y = W x + b  =  V (V' W x + V' (b - m)) + m

with an orthogonal V, one column per direction, is exact. The layer in between computes one channel
per direction, which is then cut like any other channel: keeping r of them is the factoring of rank
r. With V and m the eigenvectors and the mean of the layer's responses, this is the method of Zhang
et al. 2015 (arXiv 1505.06798, section 3.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, linears
from onnxprune.ir.edit import (
    add_initializer,
    copy_message,
    free_name,
    remove_initializers,
    replace_nodes,
)
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import attribute

OPS = ("Conv", "Gemm", "MatMul")
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
SUFFIX = "/low_rank"  # of the names of the first of both layers, its weights and its output


@dataclass(frozen=True)
class Basis:
    """Orthonormal basis of a layer's outputs.

    Attributes
    ----------
    vectors
        (outputs, outputs) one direction per column, the one of the largest variance first.
    mean
        (outputs,) origin; zeros for a layer that cannot have a bias.
    variances
        (outputs,) variance of the responses along each direction, descending.
    rows
        Number of responses that these are estimated from.
    """

    vectors: np.ndarray
    mean: np.ndarray
    variances: np.ndarray
    rows: int = 0


def factor(model: Model, layers: Mapping[str, tuple[Linear, Basis]]) -> Model:
    """Return the model with layers written as two each, which computes the same.

    The second layer has the name and the output of the original one.

    Parameters
    ----------
    layers
        Output of a layer -> the layer, one of `factorable`, and a basis of its outputs.
    """
    result = model.edit()
    nodes: list[NodeProto] = []
    weights: set[str] = set()
    for node in result.proto.graph.node:
        if node.output[0] in layers:
            weights.update(name for name in node.input[1:] if name)
            nodes += _write_as_two(result, node, *layers[node.output[0]])
        else:
            nodes.append(copy_message(node))
    replace_nodes(result.proto.graph, nodes)
    remaining = {name for node in nodes for name in node.input}
    remove_initializers(result, weights - remaining)
    return result.freeze()


def _write_as_two(
    model: EditableModel, node: NodeProto, layer: Linear, basis: Basis
) -> tuple[NodeProto, NodeProto]:
    """Return both nodes of a layer, and add their weights."""
    weight = model.weights[node.input[1]].array()
    matrix = layer.layout.to_matrix(weight)[0].astype(np.float64)
    bias = np.zeros(len(matrix))
    if layer.bias:
        bias = model.weights[layer.bias].array().astype(np.float64)
    vectors, mean = basis.vectors, basis.mean
    first = np.tensordot(vectors.T, matrix, 1)
    middle = node.output[0] + SUFFIX
    if middle in model.activation_names() or middle in model.weights:
        middle = free_name(middle, model.activation_names() | model.weights.keys())
    kernel = weight.shape[2:]
    lists = [[node.input[0]], [middle]]
    for number, (suffix, values) in enumerate(((SUFFIX, first), ("/basis", vectors[:, :, None]))):
        array = _to_weight(layer.op, values, kernel if number == 0 else (1,) * len(kernel))
        lists[number].append(
            add_initializer(model, node.input[1] + suffix, array.astype(weight.dtype))
        )
    if layer.op != "MatMul":
        for number, (suffix, values) in enumerate(
            (("/bias", vectors.T @ (bias - mean)), ("/mean", mean))
        ):
            array = values.astype(weight.dtype)
            lists[number].append(add_initializer(model, middle + suffix, array))
    attributes: dict[str, Any] = {"transB": 1} if layer.op == "Gemm" else {}
    name = (node.name or node.output[0]) + SUFFIX
    one = helper.make_node(layer.op, lists[0], [middle], name=name, **attributes)
    if layer.op == "Conv":
        one.attribute.extend(node.attribute)
        attributes = {"kernel_shape": [1] * len(kernel)}
    two = helper.make_node(layer.op, lists[1], [node.output[0]], name=node.name, **attributes)
    return one, two


def _to_weight(op: str, matrix: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """Return the weight of an operator, of a Gemm the transposed one.

    Parameters
    ----------
    matrix
        (outputs, inputs, taps).
    """
    if op == "Conv":
        return np.ascontiguousarray(matrix.reshape(*matrix.shape[:2], *kernel))
    plain = matrix[:, :, 0]
    return np.ascontiguousarray(plain.T if op == "MatMul" else plain)


def factorable(analysis: Analysis) -> list[Linear]:
    """Return the layers that can be written as two: ungrouped, with a weight of their own."""
    layers = []
    uses = Counter(use.tensor for use in analysis.uses)
    for layer in linears(analysis):
        node = analysis.nodes[layer.node]
        weights = [analysis.model.weights.get(name) for name in node.input[1:] if name]
        shapes = [weight.shape for weight in weights if weight is not None]
        if layer.op not in OPS or layer.groups != 1 or len(shapes) < len(weights):
            continue
        outputs = layer.layout.outputs(shapes[0])
        # a bias may be broadcast, or scaled
        fits = all(shape == (outputs,) for shape in shapes[1:])
        scaled = layer.op == "Gemm" and attribute(node, "beta", 1.0) != 1
        kind = analysis.shapes.dtype(layer.out)
        if fits and not scaled and uses[layer.weight.tensor] == 1 and kind in _FLOATS:
            layers.append(layer)
    return layers


def break_even(inputs: int, outputs: int) -> float:
    """Return the rank at which two layers multiply as often as the one that they replace.

    Parameters
    ----------
    inputs
        Number of values that an output sums over.
    """
    return inputs * outputs / (inputs + outputs)
