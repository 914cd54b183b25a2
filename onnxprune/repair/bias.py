"""Bias correction: what the removed channels gave on average is added to the biases of those who read them."""

from __future__ import annotations

from math import prod

import numpy as np
from onnx import helper

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, linears, to_matrix
from onnxprune.calibrate.channels import channel_statistics
from onnxprune.model.canonicalize import add_initializer
from onnxprune.model.io import Model
from onnxprune.model.nodes import attribute
from onnxprune.model.weights import from_array
from onnxprune.saliency.base import Context
from onnxprune.types import Plan


def none(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """The model as it is."""
    return pruned


def bias(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """Add the mean contribution of removed inputs to the bias of every Conv, ConvTranspose, Gemm and MatMul with constant weights.

    Means are taken in the original network. Where an operator has no bias, one is added. Borders of padded convolutions are
    treated like the inside.
    """
    removed = analysis.removed(plan.kept)
    means = channel_statistics(analysis, context.repair_data("repair 'bias'"), batch_size=context.batch_size, threads=context.threads)
    model = pruned.edit()
    for linear in linears(analysis):
        place = (linear.data, linear.axis)
        if linear.ids is None or place not in means:
            continue
        gone = ~analysis.keep(linear.ids, removed)
        if not gone.any():
            continue
        shift = _contribution(analysis, linear, np.where(gone, means[place].mean, 0.0))
        if linear.out_ids is not None:
            shift = shift[analysis.keep(linear.out_ids, removed)]
        add_bias(model, linear, shift)
    return model


def _contribution(analysis: Analysis, linear: Linear, mean: np.ndarray) -> np.ndarray:
    """(outputs,) what inputs of constant value `mean` (inputs,) give."""
    node = analysis.record.nodes[linear.node]
    matrix = to_matrix(linear, node, analysis.model.weights[linear.weight.tensor].array()).astype(np.float64)
    taps = matrix.sum(3)
    if linear.op == "ConvTranspose":
        taps = taps / prod(attribute(node, "strides") or [1])
    return np.einsum("goc,gc->go", taps, mean.reshape(len(matrix), -1)).ravel()


def add_bias(model: Model, linear: Linear, shift: np.ndarray) -> None:
    """Add a vector to a node's output channels: to its bias, to a new one, or by an Add behind a MatMul. `model` is changed."""
    node = next(n for n in model.proto.graph.node if linear.out in n.output)
    slot = 2 if linear.op != "MatMul" else None
    dtype = model.weights[node.input[1]].array().dtype if node.input[1] in model.weights else np.dtype(np.float32)
    if slot is None:
        inner = unbiased(linear.out)
        name = add_initializer(model, f"{linear.out}_bias", shift.astype(dtype))
        at = list(model.proto.graph.node).index(node)
        node.output[0] = inner
        model.proto.graph.node.insert(at + 1, helper.make_node("Add", [inner, name], [linear.out], name=f"{linear.out}_bias"))
        return
    old = model.weights.get(node.input[slot]) if len(node.input) > slot and node.input[slot] else None
    if old is not None:
        beta = float(attribute(node, "beta", 1.0)) if linear.op == "Gemm" else 1.0
        values = old.array().astype(np.float64) + shift / (beta or 1.0)
        replace_initializer(model, node.input[slot], linear.out, slot, values.astype(old.array().dtype))
    elif len(node.input) <= slot or not node.input[slot]:
        while len(node.input) <= slot:
            node.input.append("")
        node.input[slot] = add_initializer(model, f"{linear.out}_bias", shift.astype(dtype))


def unbiased(out: str) -> str:
    """What a MatMul gives once `add_bias` has put an Add behind it that makes `out`."""
    return f"{out}_unbiased"


def replace_initializer(model: Model, name: str, out: str, slot: int, values: np.ndarray) -> None:
    """Give one operand of the node that makes `out` new values; other readers of the initializer keep the old. `model` is changed."""
    readers = sum(name in n.input for n in model.proto.graph.node)
    node = next(n for n in model.proto.graph.node if out in n.output)
    if readers > 1:
        node.input[slot] = add_initializer(model, f"{name}_repaired", values)
        return
    model.weights[name] = from_array(values)  # type: ignore[index]
    tensor = next(t for t in model.proto.graph.initializer if t.name == name)
    tensor.dims[:] = values.shape
