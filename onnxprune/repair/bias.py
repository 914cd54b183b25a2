"""Bias correction: add the mean contribution of removed channels to the consumers' biases."""

from __future__ import annotations

from collections import Counter
from math import prod

import numpy as np
from onnx import NodeProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, linears
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
    """Return the pruned model unchanged."""
    return pruned


def bias(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """Add the mean contribution of removed inputs to the bias of every linear node.

    Linear nodes are Conv, ConvTranspose, Gemm and MatMul with constant weights; one without a bias
    gets one. Means are those of the original network. Borders of padded convolutions are treated
    like the interior.

    Notes
    -----
    Cost: one pass over the data.
    """
    removed = analysis.removed(plan.kept)
    statistics = channel_statistics(
        analysis,
        context.repair_data("repair 'bias'"),
        batch_size=context.batch_size,
        threads=context.threads,
    )
    model = with_means(analysis, plan, pruned, context).edit()
    parameters = Parameters(model)
    for linear in linears(analysis):
        axis = (linear.data, linear.axis)
        # nodes that pruning has removed produce nothing
        if linear.ids is None or axis not in statistics or linear.out not in parameters.producers:
            continue
        lost = ~analysis.keep(linear.ids, removed)
        if not lost.any():
            continue
        shift = _compute_contribution(analysis, linear, np.where(lost, statistics[axis].mean, 0.0))
        if linear.out_ids is not None:
            shift = shift[analysis.keep(linear.out_ids, removed)]
        parameters.add_bias(linear, shift)
    return model.freeze()


def _compute_contribution(analysis: Analysis, linear: Linear, mean: np.ndarray) -> np.ndarray:
    """Return the (outputs,) response of a node to constant inputs.

    Parameters
    ----------
    mean
        (inputs,) value of each input channel.
    """
    weight = analysis.model.weights[linear.weight.tensor].array()
    matrix = linear.layout.to_matrix(weight).astype(np.float64)
    # a constant input meets every tap
    taps = matrix.sum(3)
    if linear.op == "ConvTranspose":
        # an output sees one in prod(strides) of the taps, on average over positions
        taps = taps / prod(attribute(analysis.nodes[linear.node], "strides") or [1])
    return np.einsum("goc,gc->go", taps, mean.reshape(len(matrix), -1)).ravel()


def unbiased(out: str) -> str:
    """Return the new name of a MatMul's output after `Parameters.add_bias` inserted an Add."""
    return f"{out}_unbiased"


class Parameters:
    """Weights and biases of a model under edit.

    Attributes
    ----------
    model
        Model that is changed.
    producers
        Tensor -> node that produces it.
    """

    def __init__(self, model: EditableModel) -> None:
        self.model = model
        self.producers: dict[str, NodeProto] = {}
        for node in model.proto.graph.node:
            self.producers.update(dict.fromkeys(node.output, node))
        # consumers in nested graphs must keep the old values too
        nodes: list[NodeProto] = []
        for graph in nested(model.proto.graph):
            nodes += graph.node
        self._uses: Counter[str] = Counter()
        for node in nodes:
            self._uses.update(set(node.input))
        self._names = {n.name for n in nodes}
        self._tensors = {t.name: t for t in model.proto.graph.initializer}

    def add_bias(self, linear: Linear, shift: np.ndarray) -> None:
        """Add a vector to the output channels of a node.

        To its bias, to a new bias, or by an Add after a MatMul.

        Parameters
        ----------
        shift
            (outputs,) float64.
        """
        node, model = self.producers[linear.out], self.model
        if linear.op == "MatMul":
            self._insert_add(linear, node, shift)
            return
        has_bias = len(node.input) > 2 and node.input[2]
        old = model.weights.get(node.input[2]) if has_bias else None
        if old is not None:
            # Gemm multiplies its bias by beta
            beta = float(attribute(node, "beta", 1.0)) if linear.op == "Gemm" else 1.0
            values = old.array().astype(np.float64) + shift / (beta or 1.0)
            self.replace(linear.out, 2, values.astype(old.array().dtype))
        # a bias that is computed cannot be changed here
        elif not has_bias:
            while len(node.input) <= 2:
                node.input.append("")
            values = shift.astype(self._dtype(node))
            node.input[2] = add_initializer(model, f"{linear.out}_bias", values)

    def _dtype(self, node: NodeProto) -> np.dtype[np.generic]:
        """Return the type of a node's weight; float32 if the weight is computed."""
        weight = self.model.weights.get(node.input[1])
        return np.dtype(np.float32) if weight is None else weight.array().dtype

    def _insert_add(self, linear: Linear, node: NodeProto, shift: np.ndarray) -> None:
        """Insert an Add of a new bias after a MatMul."""
        name = f"{linear.out}_bias"
        values = add_initializer(self.model, name, shift.astype(self._dtype(node)))
        nodes = self.model.proto.graph.node
        position = next(i for i, n in enumerate(nodes) if linear.out in n.output)
        # the output is renamed, and so would be a node that is known by its output
        own = label(node)
        node.name = own if own not in self._names else node.name
        node.output[0] = unbiased(linear.out)
        add = helper.make_node(
            "Add",
            [node.output[0], values],
            [linear.out],
            name=free_name(name, self._names) if name in self._names else name,
        )
        nodes.insert(position + 1, add)
        self._names.update((node.name, add.name))

    def replace(self, out: str, slot: int, values: np.ndarray) -> None:
        """Replace an operand of the node that produces `out`.

        Other consumers of the initializer keep the old values.
        """
        node = self.producers[out]
        name = node.input[slot]
        if self._uses[name] > 1:
            node.input[slot] = add_initializer(self.model, f"{name}_repaired", values)
            self._uses[name] -= 1
            return
        self.model.weights[name] = from_array(values)
        self._tensors[name].dims[:] = values.shape
