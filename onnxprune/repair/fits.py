"""Which weights a refit may change, and what their node should give afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, bias_slot, linears
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel, ModelView
from onnxprune.ir.nodes import attribute
from onnxprune.ir.weights import from_array


@dataclass(frozen=True)
class Fit:
    """One linear node of the cut model, with what follows it up to the point where its output is fixed.

    weight, bias: names of its own initializers ("" where there is no bias to set); target: tensor behind the bias and a folded-in
    BatchNormalization; scale: (outputs,) factor of that normalization, ones without; kept: output channels of the original that are
    left, None for all; shortcut: the tensor that is added to the target, "" where nothing is; last: whether nothing follows;
    low, high: where the activation behind it all (Relu, Clip) is flat, so that values beyond need not be met.
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

    @property
    def bent(self) -> bool:
        """Whether there is such an activation."""
        return self.low > -np.inf or self.high < np.inf


def own_weights(
    analysis: Analysis, pruned: Model, removed: np.ndarray
) -> tuple[EditableModel, list[Fit]]:
    """The cut model with an initializer of its own for every weight and bias that may be refitted, and the fits in graph order."""
    model = pruned.edit()
    makers = {o: n for n in model.proto.graph.node for o in n.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in model.proto.graph.output}
    fits = []
    for linear in linears(analysis):
        node = makers.get(linear.out)
        if node is None or node.op_type != linear.op or node.input[1] not in model.weights:
            continue
        _own(model, node, 1, readers)
        follow = readers.get(linear.out, []) if linear.out not in outputs else []
        target, bias, scale = linear.out, "", np.ones(())
        behind = follow[0] if len(follow) == 1 else None
        if (
            behind is not None
            and behind.op_type == "BatchNormalization"
            and all(n in model.weights for n in behind.input[1:5])
        ):
            bias = _own(model, behind, 2, readers)
            target = behind.output[0]
            gamma, variance = (
                model.weights[behind.input[i]].array().astype(np.float64) for i in (1, 4)
            )
            scale = gamma / np.sqrt(variance + float(attribute(behind, "epsilon", 1e-5)))
        elif bias_slot(linear) is not None:
            bias = _bias(model, node, readers, linear)
        elif (
            behind is not None
            and behind.op_type == "Add"
            and (constant := _constant_side(model, behind)) is not None
        ):
            bias = _own(model, behind, constant, readers)
            target = behind.output[0]
        kept = None
        if linear.out_ids is not None:
            keep = analysis.keep(linear.out_ids, removed)
            kept = None if keep.all() else np.flatnonzero(keep)
        after = readers.get(target, []) if target not in outputs else []
        shortcut = (
            next((n for n in after[0].input if n != target and n not in model.weights), "")
            if len(after) == 1 and after[0].op_type == "Add"
            else ""
        )
        final = after[0].output[0] if shortcut else target
        bounds = _bounds(model, readers.get(final, [])) if final not in outputs else ()
        fits.append(
            Fit(
                linear,
                linear.out,
                node.input[1],
                bias,
                target,
                scale,
                kept,
                shortcut,
                not after,
                *bounds,
            )
        )
    return model, fits


def _bounds(model: ModelView, readers: list[NodeProto]) -> tuple[float, ...]:
    """Between which values a tensor's only reader tells them apart; () where it is no Relu or Clip."""
    if len(readers) == 1 and readers[0].op_type == "Relu":
        return 0.0, np.inf
    if len(readers) == 1 and readers[0].op_type == "Clip":
        node = readers[0]
        limits = [attribute(node, "min", -np.inf), attribute(node, "max", np.inf)]
        for i, name in enumerate(node.input[1:3]):
            if name and name not in model.weights:
                return ()
            limits[i] = float(model.weights[name].array()) if name else limits[i]
        return tuple(limits)
    return ()


def depthwise(node: NodeProto, weight_shape: Sequence[int]) -> bool:
    """Whether every channel is a group of its own, so that there is nothing to refit across channels."""
    groups = int(attribute(node, "group", 1)) if node.op_type.startswith("Conv") else 1
    return groups > 1 and tuple(weight_shape[:2]) == (groups, 1)


def kept_values(
    analysis: Analysis, removed: np.ndarray, tensor: str, values: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """A tensor of the whole model at the positions that the cut one still has; values: a batch each."""
    for axis, entry in enumerate(analysis.record.tensors[tensor].axes):
        ids = analysis.record.array(entry)
        if ids is not None and not (keep := analysis.keep(ids, removed)).all():
            values = [np.compress(keep, v, axis) for v in values]
    return list(values)


def set_values(model: EditableModel, name: str, values: np.ndarray) -> None:
    """New values of an initializer, in its own type. `model` is changed."""
    old = model.weights[name]
    model.weights[name] = from_array(values.reshape(old.shape).astype(old.array().dtype))


def _own(
    model: EditableModel, node: NodeProto, slot: int, readers: dict[str, list[NodeProto]]
) -> str:
    """Make an operand an initializer that only this node reads; its name."""
    name = node.input[slot]
    if sum(list(n.input).count(name) for n in readers.get(name, [node])) > 1:
        node.input[slot] = add_initializer(
            model, f"{name}_own", np.array(model.weights[name].array())
        )
        readers[name] = [n for n in readers[name] if n is not node]
        readers[node.input[slot]] = [node]
    return node.input[slot]


def _bias(
    model: EditableModel, node: NodeProto, readers: dict[str, list[NodeProto]], linear: Linear
) -> str:
    """The bias operand of a Conv or Gemm, added where it has none; "" where it cannot be set."""
    if len(node.input) > 2 and node.input[2]:
        if (
            node.input[2] not in model.weights
            or linear.op == "Gemm"
            and (
                attribute(node, "beta", 1.0) != 1.0 or len(model.weights[node.input[2]].shape) != 1
            )
        ):
            return ""
        return _own(model, node, 2, readers)
    weight = model.weights[node.input[1]]
    groups = int(attribute(node, "group", 1))
    size = {"Conv": weight.shape[0], "ConvTranspose": weight.shape[1] * groups}.get(
        linear.op, weight.shape[0 if attribute(node, "transB", 0) else 1]
    )
    del node.input[2:]
    node.input.append(
        add_initializer(model, f"{linear.out}_bias", np.zeros(size, weight.array().dtype))
    )
    return node.input[2]


def _constant_side(model: ModelView, node: NodeProto) -> int | None:
    """Operand of an Add that is a constant vector over the last axis."""
    for slot, name in enumerate(node.input):
        if (
            name in model.weights
            and len(model.weights[name].shape) == 1
            and model.weights[name].shape[0] > 1
        ):
            return slot
    return None
