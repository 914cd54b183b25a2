"""Values that enter and leave the bodies of If, Loop and Scan, for shapes and channels alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, NodeProto, TypeProto

from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute


@dataclass(frozen=True)
class Binding:
    """Value that enters a body, leaves it, or both (a state carried from iteration to iteration).

    Attributes
    ----------
    slot
        Index of the node's operand, -1 if none.
    inside
        Name of the body's input, "" if none.
    yields
        Name of the body's output, "" if none.
    result
        Name of the node's output, "" if none.
    axis
        Axis of the operand or result that the iterations slice or stack; None if not sliced.
    """

    slot: int = -1
    inside: str = ""
    yields: str = ""
    result: str = ""
    axis: int | None = None


def bindings(node: NodeProto, opset: int) -> list[Binding] | None:
    """Return all bindings of an If, Loop or Scan.

    None for other nodes, for Scan of opset 8 (batched), and if operands and bodies do not match.
    """
    if node.domain not in STANDARD_DOMAINS or node.op_type not in _KINDS:
        return None
    # Scan of opset 8 has an axis of samples in front of that of the iterations
    if (node.op_type, opset) == ("Scan", 8):
        return None
    result = _KINDS[node.op_type](node)
    if result is None:
        return None
    # every output of the node must come from somewhere
    bound = {b.result for b in result if b.result}
    return result if len(bound) == len([o for o in node.output if o]) else None


def branch(node: NodeProto, condition: object) -> GraphProto:
    """Return the body of an If that a condition selects."""
    return attribute(node, "then_branch" if condition else "else_branch")


def _bind_if(node: NodeProto) -> list[Binding] | None:
    result = []
    for body in (branch(node, True), branch(node, False)):
        if body is None or len(body.output) != len(node.output):
            return None
        for inner, outer in zip(body.output, node.output, strict=True):
            result.append(Binding(yields=inner.name, result=outer))
    return result


def _bind_loop(node: NodeProto) -> list[Binding] | None:
    """Operands are (trip count, condition, states); body outputs are (condition, states, scans)."""
    body, states = attribute(node, "body"), len(node.input) - 2
    if body is None or len(body.input) != states + 2 or len(body.output) < states + 1:
        return None
    # states follow the two inputs and the one output that control the loop
    results = _pad_outputs(node, body)
    result = []
    for i in range(states):
        inside, yields = body.input[i + 2].name, body.output[i + 1].name
        result.append(Binding(i + 2, inside, yields, results[i]))
    for inner, outer in zip(body.output[states + 1 :], results[states:], strict=False):
        result.append(Binding(yields=inner.name, result=outer, axis=0))
    return result


def _bind_scan(node: NodeProto) -> list[Binding] | None:
    """Operands are (states, scanned inputs); body outputs are (states, scanned outputs)."""
    body, count = attribute(node, "body"), int(attribute(node, "num_scan_inputs", 0))
    if body is None or not 0 < count <= len(node.input):
        return None
    states = len(node.input) - count
    if len(body.input) != len(node.input) or len(body.output) < states:
        return None
    results = _pad_outputs(node, body)
    input_axes = attribute(node, "scan_input_axes") or [0] * count
    output_axes = attribute(node, "scan_output_axes") or [0] * (len(body.output) - states)
    result = []
    for i in range(states):
        result.append(Binding(i, body.input[i].name, body.output[i].name, results[i]))
    # scanned inputs come after the states, and are sliced
    for i, axis in enumerate(input_axes, states):
        result.append(Binding(i, body.input[i].name, axis=int(axis)))
    for inner, outer, axis in zip(
        body.output[states:], results[states:], output_axes, strict=False
    ):
        result.append(Binding(yields=inner.name, result=outer, axis=int(axis)))
    return result


def _pad_outputs(node: NodeProto, body: GraphProto) -> list[str]:
    """Return the node's outputs, followed by "" for trailing optional outputs that are not used."""
    return [*node.output, *[""] * len(body.output)]


_KINDS = {"If": _bind_if, "Loop": _bind_loop, "Scan": _bind_scan}


def merge_types(kinds: Sequence[TypeProto | None]) -> TypeProto | None:
    """Return what several types have in common: differing lengths and ranks become unknown."""
    # a type that is unknown has nothing in common with others
    known = [k for k in kinds if k is not None]
    if not known or len(known) < len(kinds):
        return None
    first = known[0]
    # sequences and optionals are not taken apart
    if any(k.WhichOneof("value") != "tensor_type" for k in known):
        return first if all(k == first for k in known) else None
    out = TypeProto()
    out.CopyFrom(first)
    dims = out.tensor_type.shape.dim
    shapes = [k.tensor_type.shape.dim for k in known if k.tensor_type.HasField("shape")]
    if len(shapes) < len(known) or any(len(shape) != len(dims) for shape in shapes):
        out.tensor_type.ClearField("shape")
        return out
    for i, d in enumerate(dims):
        if any(shape[i] != d for shape in shapes):
            d.Clear()
    return out


def drop_axis(kind: TypeProto, axis: int) -> TypeProto:
    """Return the type of the slice that one iteration takes along an axis."""
    out = TypeProto()
    out.CopyFrom(kind)
    dims = out.tensor_type.shape.dim
    if dims:
        del dims[axis % len(dims)]
    return out


def stack_axis(kind: TypeProto, axis: int, length: int | None) -> TypeProto:
    """Return the type of `length` iterations' results stacked along a new axis."""
    out = TypeProto()
    out.CopyFrom(kind)
    if kind.WhichOneof("value") == "tensor_type" and kind.tensor_type.HasField("shape"):
        dims = [*kind.tensor_type.shape.dim]
        new = type(kind.tensor_type.shape).Dimension()
        # 0 iterations and an unknown number both leave the length open
        if length:
            new.dim_value = length
        dims.insert(axis % (len(dims) + 1), new)
        del out.tensor_type.shape.dim[:]
        out.tensor_type.shape.dim.extend(dims)
    return out


def refine_type(kind: TypeProto, declared: TypeProto | None) -> TypeProto:
    """Return a type with its unknown lengths taken from the declared type, where that has them."""
    if declared is None:
        return kind
    if kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
        return declared if declared.tensor_type.HasField("shape") else kind
    out = TypeProto()
    out.CopyFrom(kind)
    dims, declared_dims = out.tensor_type.shape.dim, declared.tensor_type.shape.dim
    if len(dims) == len(declared_dims):
        for d, other in zip(dims, declared_dims, strict=True):
            # a declared length may be a guess of the exporter: numbers that were inferred are kept
            if not d.HasField("dim_value") and other.HasField("dim_value"):
                d.CopyFrom(other)
    return out


def trip_count(
    node: NodeProto,
    crossing: Sequence[Binding],
    types: Mapping[str, TypeProto],
    values: Mapping[str, np.ndarray],
) -> int | None:
    """Return the number of iterations of a Loop or Scan; None if unknown."""
    if node.op_type == "Loop":
        return _find_loop_count(node, values)
    for binding in crossing:
        if binding.slot < 0 or binding.axis is None:
            continue
        kind = types.get(node.input[binding.slot])
        if kind is not None and kind.tensor_type.shape.dim:
            dims = kind.tensor_type.shape.dim
            d = dims[binding.axis % len(dims)]
            if d.HasField("dim_value"):
                return int(d.dim_value)
    return None


def _find_loop_count(node: NodeProto, values: Mapping[str, np.ndarray]) -> int | None:
    """Return the constant trip count of a Loop whose condition is true from start to end."""
    body, count = attribute(node, "body"), values.get(node.input[0])
    condition = body.output[0].name
    # the condition may be the body's own input, possibly through an Identity
    sources = [condition]
    for inner in body.node:
        if inner.op_type == "Identity" and inner.output[0] == condition:
            sources.append(inner.input[0])
    # without a condition the loop runs to its trip count
    starts = not node.input[1] or _is_true(values.get(node.input[1]))
    continues = body.input[1].name in sources or _is_true(values.get(condition))
    # a loop whose condition turns false ends early, however many iterations are allowed
    if count is None or count.dtype == object or not starts or not continues:
        return None
    return int(count.item()) if count.size == 1 else None


def _is_true(value: np.ndarray | None) -> bool:
    return value is not None and value.dtype == bool and bool(value.all())
