"""How values pass the borders of the bodies of If, Loop and Scan; the one description that shapes and channels both follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, NodeProto, TypeProto

from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute


@dataclass(frozen=True)
class Wire:
    """A value that enters a body, leaves it, or both: then it is a state that goes on from pass to pass.

    slot: operand that it comes from, -1 for none; inside: the body's input; yields: the body's output; result: the node's output
    ("" where there is none); axis: of the operand or result, along which the passes take or stack their parts; None = taken whole.
    """

    slot: int = -1
    inside: str = ""
    yields: str = ""
    result: str = ""
    axis: int | None = None


def wires(node: NodeProto, opset: int) -> list[Wire] | None:
    """All wires of an If, a Loop or a Scan; None for other nodes, and where operands and bodies do not fit each other."""
    found = (
        _KINDS[node.op_type](node)
        if node.domain in STANDARD_DOMAINS
        and node.op_type in _KINDS
        and (node.op_type, opset) != ("Scan", 8)
        else None
    )
    if found is None or len({w.result for w in found if w.result}) != len(
        [o for o in node.output if o]
    ):
        return None
    return found


def branch(node: NodeProto, condition: object) -> GraphProto:
    """The body of an If that a condition chooses."""
    return attribute(node, "then_branch" if condition else "else_branch")


def _if(node: NodeProto) -> list[Wire] | None:
    bodies = [branch(node, True), branch(node, False)]
    if any(b is None or len(b.output) != len(node.output) for b in bodies):
        return None
    return [
        Wire(yields=o.name, result=r)
        for body in bodies
        for o, r in zip(body.output, node.output, strict=False)
    ]


def _loop(node: NodeProto) -> list[Wire] | None:
    body, states = attribute(node, "body"), len(node.input) - 2
    if body is None or len(body.input) != states + 2 or len(body.output) < states + 1:
        return None
    results = [*node.output, *[""] * len(body.output)]
    found = [
        Wire(i + 2, body.input[i + 2].name, body.output[i + 1].name, results[i])
        for i in range(states)
    ]
    return found + [
        Wire(yields=o.name, result=r, axis=0)
        for o, r in zip(body.output[states + 1 :], results[states:], strict=False)
    ]


def _scan(node: NodeProto) -> list[Wire] | None:
    body, count = attribute(node, "body"), int(attribute(node, "num_scan_inputs", 0))
    states = len(node.input) - count
    if (
        body is None
        or not 0 < count <= len(node.input)
        or len(body.input) != len(node.input)
        or len(body.output) < states
    ):
        return None
    results = [*node.output, *[""] * len(body.output)]
    taken = attribute(node, "scan_input_axes") or [0] * count
    stacked = attribute(node, "scan_output_axes") or [0] * (len(body.output) - states)
    found = [Wire(i, body.input[i].name, body.output[i].name, results[i]) for i in range(states)]
    found += [
        Wire(states + i, body.input[states + i].name, axis=int(a)) for i, a in enumerate(taken)
    ]
    return found + [
        Wire(yields=o.name, result=r, axis=int(a))
        for o, r, a in zip(body.output[states:], results[states:], stacked, strict=False)
    ]


_KINDS = {"If": _if, "Loop": _loop, "Scan": _scan}


# ---------------------------------------------------------------- types


def common(kinds: Sequence[TypeProto | None]) -> TypeProto | None:
    """What several types agree on: lengths that differ are unknown, without a common rank there is no shape."""
    first = kinds[0] if kinds else None
    if first is None or any(k is None or k.WhichOneof("value") != "tensor_type" for k in kinds):
        return first if first is not None and all(k == first for k in kinds) else None
    out = TypeProto()
    out.CopyFrom(first)
    shapes = [
        k.tensor_type.shape.dim if k is not None and k.tensor_type.HasField("shape") else None
        for k in kinds
    ]
    if any(s is None or len(s) != len(out.tensor_type.shape.dim) for s in shapes):
        out.tensor_type.ClearField("shape")
        return out
    for i, d in enumerate(out.tensor_type.shape.dim):
        if any(s[i] != d for s in shapes):  # type: ignore[index]
            d.Clear()
    return out


def without(kind: TypeProto, axis: int) -> TypeProto:
    """Type of what one pass takes along an axis."""
    out = TypeProto()
    out.CopyFrom(kind)
    if out.tensor_type.shape.dim:
        del out.tensor_type.shape.dim[axis % len(out.tensor_type.shape.dim)]
    return out


def stacked(kind: TypeProto, axis: int, length: int | None) -> TypeProto:
    """Type of what all passes make, `length` of them, along a new axis."""
    out = TypeProto()
    out.CopyFrom(kind)
    if kind.WhichOneof("value") == "tensor_type" and kind.tensor_type.HasField("shape"):
        dims = [*kind.tensor_type.shape.dim]
        dims.insert(
            axis % (len(dims) + 1),
            type(kind.tensor_type.shape).Dimension(dim_value=length)
            if length
            else type(kind.tensor_type.shape).Dimension(),
        )
        del out.tensor_type.shape.dim[:]
        out.tensor_type.shape.dim.extend(dims)
    return out


def refined(kind: TypeProto | None, declared: TypeProto | None) -> TypeProto | None:
    """A type whose unknown lengths are those that were declared."""
    if (
        kind is None
        or declared is None
        or kind.WhichOneof("value") != "tensor_type"
        or not kind.tensor_type.HasField("shape")
    ):
        return (
            declared
            if kind is None or declared is not None and declared.tensor_type.HasField("shape")
            else kind
        )
    out = TypeProto()
    out.CopyFrom(kind)
    if len(out.tensor_type.shape.dim) == len(declared.tensor_type.shape.dim):
        for d, told in zip(out.tensor_type.shape.dim, declared.tensor_type.shape.dim, strict=False):
            if not d.HasField("dim_value") and told.HasField("dim_value"):
                d.CopyFrom(told)
    return out


def passes(
    node: NodeProto,
    found: Sequence[Wire],
    types: Mapping[str, TypeProto],
    values: Mapping[str, np.ndarray],
) -> int | None:
    """How often the body of a Loop or a Scan runs; None where that is not known."""
    if node.op_type == "Loop":
        body, most, start = (
            attribute(node, "body"),
            values.get(node.input[0]),
            values.get(node.input[1]),
        )
        told, end = [body.output[0].name], values.get(body.output[0].name)
        told += [
            n.input[0] for n in body.node if n.op_type == "Identity" and n.output[0] == told[0]
        ]
        begins = (
            not node.input[1] or start is not None and start.dtype == bool and bool(start.all())
        )
        goes_on = (
            body.input[1].name in told or end is not None and end.dtype == bool and bool(end.all())
        )
        return (
            int(most.reshape(()))
            if most is not None and most.dtype != object and begins and goes_on
            else None
        )
    for wire in found:
        kind = (
            types.get(node.input[wire.slot]) if wire.slot >= 0 and wire.axis is not None else None
        )
        if kind is not None and kind.tensor_type.shape.dim:
            d = kind.tensor_type.shape.dim[wire.axis % len(kind.tensor_type.shape.dim)]  # type: ignore[operator]
            if d.HasField("dim_value"):
                return int(d.dim_value)
    return None
