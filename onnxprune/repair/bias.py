"""Bias correction: what the removed channels gave on average is added to the biases of those who read them."""

from __future__ import annotations

from collections import Counter
from math import prod

import numpy as np
from onnx import helper

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, linears, to_matrix
from onnxprune.criteria.base import Context
from onnxprune.ir.edit import add_initializer, free_name
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import attribute, label, nested
from onnxprune.ir.weights import from_array
from onnxprune.repair.constants import with_means
from onnxprune.statistics.channels import channel_statistics
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
    means = channel_statistics(
        analysis,
        context.repair_data("repair 'bias'"),
        batch_size=context.batch_size,
        threads=context.threads,
    )
    model = with_means(analysis, plan, pruned, context).edit()
    parameters = Parameters(model)
    for linear in linears(analysis):
        place = (linear.data, linear.axis)
        if linear.ids is None or place not in means or linear.out not in parameters.maker:
            continue
        gone = ~analysis.keep(linear.ids, removed)
        if not gone.any():
            continue
        shift = _contribution(analysis, linear, np.where(gone, means[place].mean, 0.0))
        if linear.out_ids is not None:
            shift = shift[analysis.keep(linear.out_ids, removed)]
        parameters.add_bias(linear, shift)
    return model.freeze()


def _contribution(analysis: Analysis, linear: Linear, mean: np.ndarray) -> np.ndarray:
    """(outputs,) what inputs of constant value `mean` (inputs,) give."""
    node = analysis.record.nodes[linear.node]
    matrix = to_matrix(linear, node, analysis.model.weights[linear.weight.tensor].array()).astype(
        np.float64
    )
    taps = matrix.sum(3)
    if linear.op == "ConvTranspose":
        taps = taps / prod(attribute(node, "strides") or [1])
    return np.einsum("goc,gc->go", taps, mean.reshape(len(matrix), -1)).ravel()


def unbiased(out: str) -> str:
    """What a MatMul gives once `Parameters.add_bias` has put an Add behind it that makes `out`."""
    return f"{out}_unbiased"


class Parameters:
    """Weights and biases of a model, which is changed. Who makes and who reads what is looked up once."""

    def __init__(self, model: EditableModel) -> None:
        self.model = model
        self.maker = {o: n for n in model.proto.graph.node for o in n.output}
        nodes = [n for graph in nested(model.proto.graph) for n in graph.node]
        self.uses = Counter(i for n in nodes for i in set(n.input))
        self.names = {n.name for n in nodes}
        self.tensors = {t.name: t for t in model.proto.graph.initializer}

    def add_bias(self, linear: Linear, shift: np.ndarray) -> None:
        """Add a vector to a node's output channels: to its bias, to a new one, or by an Add behind a MatMul."""
        node, model = self.maker[linear.out], self.model
        dtype = (
            model.weights[node.input[1]].array().dtype
            if node.input[1] in model.weights
            else np.dtype(np.float32)
        )
        if linear.op == "MatMul":
            name, nodes = (
                add_initializer(model, f"{linear.out}_bias", shift.astype(dtype)),
                model.proto.graph.node,
            )
            at = next(i for i, n in enumerate(nodes) if linear.out in n.output)
            own, added = label(node), f"{linear.out}_bias"
            node.name = (
                own if own not in self.names else node.name
            )  # what it is called stays, though its output does not
            node.output[0] = unbiased(linear.out)
            nodes.insert(
                at + 1,
                helper.make_node(
                    "Add",
                    [node.output[0], name],
                    [linear.out],
                    name=free_name(added, self.names) if added in self.names else added,
                ),
            )
            self.names.update((node.name, nodes[at + 1].name))
            return
        old = model.weights.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if old is not None:
            beta = float(attribute(node, "beta", 1.0)) if linear.op == "Gemm" else 1.0
            values = old.array().astype(np.float64) + shift / (beta or 1.0)
            self.replace(linear.out, 2, values.astype(old.array().dtype))
        elif len(node.input) <= 2 or not node.input[2]:
            while len(node.input) <= 2:
                node.input.append("")
            node.input[2] = add_initializer(model, f"{linear.out}_bias", shift.astype(dtype))

    def replace(self, out: str, slot: int, values: np.ndarray) -> None:
        """Give one operand of the node that makes `out` new values; other readers of the initializer keep the old."""
        node = self.maker[out]
        name = node.input[slot]
        if self.uses[name] > 1:
            node.input[slot] = add_initializer(self.model, f"{name}_repaired", values)
            self.uses[name] -= 1
            return
        self.model.weights[name] = from_array(values)
        self.tensors[name].dims[:] = values.shape
