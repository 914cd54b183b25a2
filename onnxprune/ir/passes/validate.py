"""Structural checks of a graph, before passes rely on its structure."""

from __future__ import annotations

import re
from typing import NamedTuple

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, ValueInfoProto

from onnxprune.errors import ModelError
from onnxprune.ir.model import ModelView
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, label, nested, subgraphs
from onnxprune.ir.shapes import Shapes

LONGEST_NAME = 1 << 16
_TERM = r"[A-Za-z ]*(\.\.\.[A-Za-z ]*)?"
_EQUATION = re.compile(rf"{_TERM}(,{_TERM})*(->{_TERM})?")


def validate(model: ModelView) -> None:
    """Check that every name is defined once and before use, and that nodes have enough operands.

    Raises
    ------
    ModelError
        A check fails.
    """
    _Validator(model.opset).visit(model.proto.graph, {""})


def check_loops(graph: GraphProto, shapes: Shapes) -> None:
    """Check that trip counts and conditions of loops have an element.

    onnxruntime (1.32) reads one without a check, which ends the process.

    Raises
    ------
    ModelError
        One is empty.
    """
    for inner in nested(graph):
        for node in inner.node:
            if node.op_type != "Loop" or node.domain not in STANDARD_DOMAINS:
                continue
            goes_on = [body.output[0].name for body in subgraphs(node) if body.output]
            for name in (*node.input[:2], *goes_on):
                if 0 in (shapes.shape(name) or ()):
                    raise ModelError(
                        "model-invalid",
                        f"node {label(node)!r} has an empty tensor {name!r} for its trip count or "
                        "condition",
                    )


class _Signature(NamedTuple):
    """Least numbers of inputs and outputs of an operator, and the types of its attributes."""

    inputs: int
    outputs: int
    kinds: dict[str, int]


class _Validator:
    """Checks graphs of one opset; the signature of each operator is looked up once."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.signatures: dict[tuple[str, str], _Signature] = {}

    def visit(self, graph: GraphProto, outer: set[str]) -> None:
        """Check a graph whose nodes may also read the names in `outer`."""
        for info in (*graph.input, *graph.output, *graph.value_info):
            _check_info_text(info)
        known = outer | {i.name for i in (*graph.input, *graph.initializer)}
        known |= {s.values.name for s in graph.sparse_initializer}
        for node in graph.node:
            _check_node_text(node)
            self.check_operands(node)
            _check_batch_dims(node)
            _check_references(node)
            _check_equation(node)
            for name in node.input:
                if name and name not in known:
                    raise ModelError(
                        "model-invalid",
                        f"node {node.name or node.op_type!r} reads {name!r}, "
                        "which no earlier node, input or initializer defines",
                    )
            # a body sees everything defined before its node
            for body in subgraphs(node):
                self.visit(body, known)
            for name in node.output:
                if name and name in known:
                    raise ModelError("model-invalid", f"tensor {name!r} is defined twice")
                # after its bodies, which must not read the outputs of their own node
                known.add(name)
        for output in graph.output:
            if output.name not in known:
                raise ModelError(
                    "model-invalid", f"graph output {output.name!r} is defined by no node"
                )

    def check_operands(self, node: NodeProto) -> None:
        """Check operands, results and attributes against the operator's schema."""
        key = (node.domain, node.op_type)
        if key not in self.signatures:
            self.signatures[key] = self.find_signature(node)
        inputs, outputs, kinds = self.signatures[key]
        if len(node.input) < inputs or len(node.output) < outputs:
            raise ModelError(
                "model-invalid",
                f"node {label(node)!r} has {len(node.input)} inputs and {len(node.output)} "
                f"outputs; {node.op_type} needs at least {inputs} and {outputs}",
            )
        for item in node.attribute:
            # old files have attributes without a type
            if item.type and kinds.get(item.name, item.type) != item.type:
                raise ModelError(
                    "model-invalid",
                    f"node {label(node)!r} has attribute {item.name!r} of another type than "
                    f"{node.op_type} defines",
                )

    def find_signature(self, node: NodeProto) -> _Signature:
        """Return the signature of a node's operator, without limits if it has no schema."""
        if node.domain in STANDARD_DOMAINS and onnx.defs.has(node.op_type, self.opset):
            schema = onnx.defs.get_schema(node.op_type, self.opset)
            kinds = {name: _number(item.type) for name, item in schema.attributes.items()}
            return _Signature(schema.min_input, schema.min_output, kinds)
        # rules exist for their forms in other domains and in older opsets, too
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return _Signature(2, 1, {})
        return _Signature(0, 0, {})


def _number(kind: onnx.defs.OpSchema.AttrType) -> int:
    """Return the number of a type of attributes in protobuf."""
    return AttributeProto.AttributeType.Value(str(kind).rpartition(".")[2])


def _check_text(*names: str | bytes) -> None:
    """Reject names that are too long, or not UTF-8: protobuf gives those as bytes."""
    for name in names:
        if isinstance(name, bytes):
            raise ModelError(
                "model-invalid", f"the graph has a name that is not UTF-8: {name!r:.80}"
            )
        # messages, plans and reports quote names
        if len(name) > LONGEST_NAME:
            raise ModelError(
                "model-invalid",
                f"the graph has a name of {len(name)} characters, {name[:40]!r}...; "
                f"the limit is {LONGEST_NAME}",
            )


def _check_node_text(node: NodeProto) -> None:
    """Reject a node with a name that is not UTF-8."""
    _check_text(node.name, node.op_type, node.domain, *node.input, *node.output)
    _check_text(*(item.name for item in node.attribute))


def _check_info_text(info: ValueInfoProto) -> None:
    """Reject a tensor whose name or length is not UTF-8."""
    _check_text(info.name, *(dim.dim_param for dim in info.type.tensor_type.shape.dim))


def _check_equation(node: NodeProto) -> None:
    """Reject an equation of Einsum on which onnx's shape inference (1.23) never ends."""
    if node.op_type != "Einsum" or node.domain not in STANDARD_DOMAINS:
        return
    equation = attribute(node, "equation", "")
    if not isinstance(equation, str) or not _EQUATION.fullmatch(equation):
        raise ModelError(
            "model-invalid",
            f"node {label(node)!r} has equation {equation!r:.80}; terms are letters and one '...'",
        )


def _check_references(node: NodeProto) -> None:
    """Reject attributes that refer to those of a local function; all functions are inlined."""
    for item in node.attribute:
        if item.ref_attr_name:
            raise ModelError(
                "model-invalid",
                f"attribute {item.name!r} of node {label(node)!r} refers to "
                f"{item.ref_attr_name!r} of a local function, but the node is in none",
            )


def _check_batch_dims(node: NodeProto) -> None:
    """Reject a negative batch_dims of GatherND, which crashes onnx's shape inference (1.23)."""
    if node.op_type == "GatherND" and node.domain in STANDARD_DOMAINS:
        count = attribute(node, "batch_dims", 0)
        if not isinstance(count, int) or count < 0:
            raise ModelError(
                "model-invalid",
                f"node {label(node)!r} has batch_dims {count!r}; the minimum is 0",
            )
