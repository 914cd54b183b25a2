"""Prepare a model for a hand-off target: static shapes, explicit attributes, opset, rewrites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from onnxprune.deploy.bundle import HandoffTarget, PreparedModel
from onnxprune.deploy.opset import convert_opset
from onnxprune.engines.base import fix_shapes
from onnxprune.errors import OnnxpruneError
from onnxprune.ir.edit import add_weight
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel, ModelView
from onnxprune.ir.nodes import attribute, set_attribute
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.ir.passes.remove_unused import remove_dead
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.weights import from_array

NEWEST_IR = 8  # of ONNX 1.13; the importers of all flows read it
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "Flatten": {"axis": 1},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0},
}


def prepare(
    model: Model,
    name: str,
    target: HandoffTarget,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> PreparedModel:
    """Return the model as a target reads it.

    Parameters
    ----------
    shapes
        Input name -> shape, for inputs with dynamic axes; a dynamic first axis is a batch of 1.

    Raises
    ------
    UsageError
        An input has other dynamic axes and no shape was given.
    """
    notes: list[str] = []
    # importers of accelerators have no dynamic axes
    static = canonicalize(fix_shapes(model, shapes or {}))
    # before explicit attributes, which are those of the final opset
    if target.opset and static.opset != target.opset:
        static = _try_convert(static, target, notes)
    copy = make_explicit(static)
    # importers reject newer versions although the content is the same
    copy.proto.ir_version = min(copy.proto.ir_version, NEWEST_IR)
    # shapes are inferred on the copy: its weights of Gemm are transposed
    if target.rewrite is not None:
        target.rewrite(copy, infer(copy))
    # again: the rewrite changed nodes
    inferred = infer(copy)
    _write_shapes(copy, inferred)
    sizes = {}
    for tensor in inferred.types:
        shape = _find_static_shape(inferred.shape(tensor))
        if shape is not None:
            sizes[tensor] = shape
    unknown = sorted(_list_outputs(copy) - set(sizes))
    if unknown:
        notes.append(
            f"{len(unknown)} tensors have no static shape, first {unknown[0]!r}: "
            "compilers for fixed hardware reject them"
        )
    return PreparedModel(name, copy.freeze(), sizes, tuple(notes))


def _list_outputs(model: ModelView) -> set[str]:
    """Return the names of all tensors that nodes compute."""
    return {output for node in model.proto.graph.node for output in node.output if output}


def _write_shapes(model: EditableModel, inferred: Shapes) -> None:
    """Write inferred types to value_info and to the graph's outputs, in place."""
    graph = model.proto.graph
    del graph.value_info[:]
    for value in graph.output:
        if inferred.shape(value.name) is not None:
            value.type.CopyFrom(inferred.types[value.name])
    # inputs and outputs have their own declarations
    inner = _list_outputs(model) - {v.name for v in (*graph.input, *graph.output)}
    graph.value_info.extend(
        helper.make_value_info(name, kind) for name, kind in inferred.types.items() if name in inner
    )


def make_explicit(model: Model) -> EditableModel:
    """Return an editable copy with default attributes written out and weights of Gemm as (out, in).

    Importers of accelerators read attributes from the node and implement few of ONNX's defaults.
    """
    copy = model.edit()
    for node in copy.proto.graph.node:
        for name, value in _list_defaults(copy, node).items():
            if attribute(node, name) is None:
                set_attribute(node, name, value)
        transposed = attribute(node, "transB")
        # (out, in), as NNgen's importer and others expect it
        if node.op_type == "Gemm" and not transposed and node.input[1] in copy.weights:
            _transpose_weight(copy, node)
    # the old weights of Gemm may have no consumer any more
    remove_dead(copy)
    return copy


def _list_defaults(model: ModelView, node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node with the values that ONNX assumes if they are absent."""
    defaults: dict[str, Any] = dict(_DEFAULTS.get(node.op_type, {}))
    convolution = node.op_type in _CONVOLUTIONS
    weight = model.weights.get(node.input[1]) if convolution and node.input[1:] else None
    rank = len(weight.shape) - 2 if weight is not None else 0
    if convolution or node.op_type in ("MaxPool", "AveragePool"):
        # a convolution whose weight is computed has its rank in kernel_shape only
        rank = rank or len(attribute(node, "kernel_shape", ()))
    if rank <= 0:
        return defaults
    defaults["strides"] = [1] * rank
    if convolution:
        defaults |= {"dilations": [1] * rank, "group": 1}
    if weight is not None:
        defaults["kernel_shape"] = list(weight.shape[2:])
    # pads are not valid next to auto_pad
    if attribute(node, "auto_pad", "NOTSET") == "NOTSET":
        defaults["pads"] = [0] * (2 * rank)
    return defaults


def _transpose_weight(model: EditableModel, node: NodeProto) -> None:
    """Give a Gemm its weight as (out, in), in place; other consumers keep the old one."""
    old = node.input[1]
    values = np.ascontiguousarray(model.weights[old].array().T)
    name = f"{old}_out_in"
    # an equal weight of another Gemm is shared; a different one of that name is left alone
    while name in model.weights and not np.array_equal(model.weights[name].array(), values):
        name += "_"
    if name not in model.weights:
        add_weight(model, name, from_array(values))
    node.input[1] = name
    set_attribute(node, "transB", 1)


def _try_convert(model: Model, target: HandoffTarget, notes: list[str]) -> Model:
    """Return the model in the target's opset, unchanged with a note if it cannot be converted."""
    try:
        return convert_opset(model, target.opset)
    # a note, because the flow may read the newer opset nevertheless
    except OnnxpruneError as problem:
        notes.append(
            f"opset stays {model.opset} although {target.title} expects {target.opset}: "
            f"{problem.message}"
        )
        return model


def _find_static_shape(shape: tuple[int | str | None, ...] | None) -> tuple[int, ...] | None:
    """Return the shape if every axis is a number, else None."""
    if shape is None:
        return None
    numbers = tuple(d for d in shape if isinstance(d, int))
    return numbers if len(numbers) == len(shape) else None
