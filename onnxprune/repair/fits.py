"""Weights that a refit may change, and the tensors that they should reproduce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.folded import KeptPositions
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, linears
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.io import Model
from onnxprune.ir.linear import WeightLayout
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import attribute, nested
from onnxprune.ir.weights import from_array


@dataclass(frozen=True)
class Fit:
    """One linear node of the pruned model, with the nodes that fix its target.

    Attributes
    ----------
    linear
        The node in the original model.
    node
        Its output, by which it is known.
    weight, bias
        Names of its own initializers; bias is "" if none can be set.
    target
        Tensor after the bias and a following BatchNormalization, to be reproduced.
    scale
        (outputs,) factor of that BatchNormalization; () one without.
    kept
        Kept output channels of the original; None for all.
    kept_rows
        Kept positions per further axis of the target that loses some (token mixers, channels
        folded into the batch).
    shortcut
        Tensor that is added to the target; "" if none is.
    last
        True if no node follows.
    low, high
        Range outside of which a following activation (Relu, Clip) is saturated, so that values need
        not be met exactly there.
    """

    linear: Linear
    node: str
    weight: str
    bias: str
    target: str
    scale: np.ndarray
    kept: np.ndarray | None
    shortcut: str
    last: bool
    low: float = -np.inf
    high: float = np.inf
    kept_rows: Mapping[int, KeptPositions] = field(default_factory=dict)

    @property
    def saturating(self) -> bool:
        """True if an activation with a saturated range follows."""
        return self.low > -np.inf or self.high < np.inf


def prepare_fits(
    analysis: Analysis, pruned: Model, removed: np.ndarray
) -> tuple[EditableModel, list[Fit]]:
    """Find the weights that can be refitted and give each node initializers of its own.

    Parameters
    ----------
    removed
        (causes + 1,) bool, as returned by `Analysis.removed`.

    Returns
    -------
    model
        Copy of the pruned model in which a refitted weight or bias is shared by fits at most.
    fits
        In graph order. Uses of a shared weight are fits with the same `weight`; their nodes stand
        next to each other. A weight that other nodes read as well has no fit.
    """
    builder = _FitBuilder(analysis, pruned.edit(), removed)
    fits = [builder.build(linear) for linear in builder.linears]
    return builder.model, [fit for fit in fits if fit is not None]


class _FitBuilder:
    """Builds fits on a model, which is changed."""

    def __init__(self, analysis: Analysis, model: EditableModel, removed: np.ndarray) -> None:
        self.analysis, self.model, self.removed = analysis, model, removed
        self.producers: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in model.proto.graph.node:
            self.producers.update(dict.fromkeys(node.output, node))
        # bodies read weights and activations of the main graph by name
        for graph in nested(model.proto.graph):
            for node in graph.node:
                for name in node.input:
                    self.consumers.setdefault(name, []).append(node)
        self.outputs = {o.name for o in model.proto.graph.output}
        self.linears = linears(analysis)
        self.tied = {} if analysis.options.get("untie") else self.find_tied()

    def find_tied(self) -> dict[str, list[str]]:
        """Return, per weight of several linear nodes and no others, the outputs of these nodes."""
        uses: dict[str, list[str]] = {}
        for linear in self.linears:
            node = self.producers.get(linear.out)
            # of a removed branch, the node is missing or another one
            if node is not None and node.op_type == linear.op:
                uses.setdefault(node.input[1], []).append(linear.out)
        return {
            name: outs
            for name, outs in uses.items()
            # a consumer that is not linear would be changed by a refit of the others
            if len(outs) > 1 and len(outs) == len(self.consumers.get(name, ()))
        }

    def build(self, linear: Linear) -> Fit | None:
        """Return the fit of a node; None if the node or its plain weight no longer exists."""
        node = self.producers.get(linear.out)
        if node is None or node.op_type != linear.op or node.input[1] not in self.model.weights:
            return None
        if node.input[1] not in self.tied:
            if self.is_shared(node.input[1]):
                return None
            self.make_own(node, 1)
        target, bias, scale = self.find_target(linear, node)
        after = self.inner_consumers(target)
        shortcut = self.find_shortcut(target, after)
        low, high = -np.inf, np.inf
        # the activation is after the addition of the shortcut
        final = after[0].output[0] if shortcut else target
        # an output must be met everywhere, also where an activation saturates
        if final not in self.outputs:
            low, high = self.find_bounds(self.consumers.get(final, []))
        kept_rows = self.analysis.kept_positions(target, self.removed)
        # the output channels themselves are in `kept`
        kept_rows.pop(linear.out_axis, None)
        if not all(rows.solvable for rows in kept_rows.values()):
            return None
        kept = None
        if linear.out_ids is not None:
            keep = self.analysis.keep(linear.out_ids, self.removed)
            kept = None if keep.all() else np.flatnonzero(keep)
        return Fit(
            linear=linear,
            node=linear.out,
            weight=node.input[1],
            bias=bias,
            target=target,
            scale=scale,
            kept=kept,
            shortcut=shortcut,
            last=not after,
            low=low,
            high=high,
            kept_rows=kept_rows,
        )

    def inner_consumers(self, tensor: str) -> list[NodeProto]:
        """Return the consumers of a tensor; none if it is an output, whose value must not move."""
        return self.consumers.get(tensor, []) if tensor not in self.outputs else []

    def find_target(self, linear: Linear, node: NodeProto) -> tuple[str, str, np.ndarray]:
        """Return the target of a node, the initializer of its bias, and the factor between."""
        no_scale = np.ones(())
        following = self.inner_consumers(linear.out)
        after = following[0] if len(following) == 1 else None
        if after is not None and self.is_constant_batchnorm(after):
            # its shift takes the role of the bias: a bias in front of it would be scaled
            bias = self.make_own(after, 2)
            gamma, variance = (
                self.model.weights[after.input[i]].array().astype(np.float64) for i in (1, 4)
            )
            epsilon = float(attribute(after, "epsilon", 1e-5))
            return after.output[0], bias, gamma / np.sqrt(variance + epsilon)
        if linear.layout.bias_slot is not None:
            return linear.out, self.make_bias(linear, node), no_scale
        # MatMul has no operand for a bias; exporters write it as an Add
        if after is not None and after.op_type == "Add":
            slot = self.find_vector_operand(after)
            if slot is not None:
                return after.output[0], self.make_own(after, slot), no_scale
        return linear.out, "", no_scale

    def is_constant_batchnorm(self, node: NodeProto) -> bool:
        """Return True for a BatchNormalization whose parameters are all initializers."""
        return node.op_type == "BatchNormalization" and all(
            name in self.model.weights for name in node.input[1:5]
        )

    def find_vector_operand(self, add: NodeProto) -> int | None:
        """Return the operand of an Add that is a constant vector over the last axis."""
        for slot, name in enumerate(add.input):
            if name in self.model.weights:
                shape = self.model.weights[name].shape
                # a single number cannot shift each output on its own
                if len(shape) == 1 and shape[0] > 1:
                    return slot
        return None

    def find_shortcut(self, target: str, after: Sequence[NodeProto]) -> str:
        """Return the activation that an Add, the only consumer, adds to the target; else ""."""
        if len(after) != 1 or after[0].op_type != "Add":
            return ""
        operands = after[0].input
        return next((n for n in operands if n != target and n not in self.model.weights), "")

    def find_bounds(self, consumers: Sequence[NodeProto]) -> tuple[float, float]:
        """Return the range that a Relu or Clip, the only consumer, does not saturate."""
        unbounded = -np.inf, np.inf
        if len(consumers) != 1:
            return unbounded
        node = consumers[0]
        if node.op_type == "Relu":
            return 0.0, np.inf
        if node.op_type != "Clip":
            return unbounded
        # attributes up to opset 10, inputs from opset 11 on
        limits = [attribute(node, "min", -np.inf), attribute(node, "max", np.inf)]
        for i, name in enumerate(node.input[1:3]):
            if not name:
                continue
            if name not in self.model.weights:
                return unbounded
            limits[i] = float(self.model.weights[name].array())
        return limits[0], limits[1]

    def is_shared(self, name: str) -> bool:
        """Return True if nodes other than one read a weight that must remain stored once."""
        tie = not self.analysis.options.get("untie")
        return tie and sum(list(n.input).count(name) for n in self.consumers[name]) > 1

    def is_tied_bias(self, name: str) -> bool:
        """Return True if all consumers of a bias belong to uses of one shared weight."""
        consumers = self.consumers.get(name, ())
        for outs in self.tied.values():
            tensors = set(outs)
            if all(tensors & {*node.input, *node.output} for node in consumers):
                return len(consumers) > 1
        return False

    def make_own(self, node: NodeProto, slot: int) -> str:
        """Make an operand an initializer that only this node consumes; return its name.

        The bias of a shared weight remains shared by the uses of that weight.
        """
        name = node.input[slot]
        if self.is_tied_bias(name):
            return name
        consumers = self.consumers.get(name, [node])
        if sum(list(n.input).count(name) for n in consumers) > 1:
            values = np.array(self.model.weights[name].array())
            node.input[slot] = add_initializer(self.model, f"{name}_own", values)
            self.consumers[name] = [n for n in self.consumers[name] if n is not node]
            self.consumers[node.input[slot]] = [node]
        return node.input[slot]

    def make_bias(self, linear: Linear, node: NodeProto) -> str:
        """Return the bias operand of a Conv or Gemm, added if it has none; "" if not settable."""
        if len(node.input) > 2 and node.input[2]:
            return self.make_own(node, 2) if self.is_settable_bias(linear, node) else ""
        weight = self.model.weights[node.input[1]]
        size = WeightLayout.of(node).outputs(weight.shape)
        # an empty name may stand for the missing bias
        del node.input[2:]
        zeros = np.zeros(size, weight.array().dtype)
        node.input.append(add_initializer(self.model, f"{linear.out}_bias", zeros))
        return node.input[2]

    def is_settable_bias(self, linear: Linear, node: NodeProto) -> bool:
        """Return True if a node's bias is a plain vector, added without a factor."""
        if node.input[2] not in self.model.weights:
            return False
        if linear.op != "Gemm":
            return True
        # Gemm broadcasts a bias of another rank over rows
        rank = len(self.model.weights[node.input[2]].shape)
        return rank == 1 and attribute(node, "beta", 1.0) == 1.0


def depthwise(node: NodeProto, weight_shape: Sequence[int]) -> bool:
    """Return True if every channel is a group of its own, with nothing to refit across channels."""
    groups = WeightLayout.of(node).groups
    return groups > 1 and tuple(weight_shape[:2]) == (groups, 1)


def set_values(model: EditableModel, name: str, values: np.ndarray) -> None:
    """Replace the values of an initializer, converted to its shape and type."""
    old = model.weights[name]
    model.weights[name] = from_array(values.reshape(old.shape).astype(old.array().dtype))
