"""Structural checks of a graph, before passes rely on its structure."""

from __future__ import annotations

import re

import onnx
from onnx import GraphProto, NodeProto

from onnxprune.errors import ModelError
from onnxprune.ir.model import ModelView
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, label, subgraphs

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


class _Validator:
    """Checks graphs of one opset; the minimal operand counts are looked up once per op."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.minimum: dict[tuple[str, str], tuple[int, int]] = {}

    def visit(self, graph: GraphProto, outer: set[str]) -> None:
        """Check a graph whose nodes may also read the names in `outer`."""
        known = outer | {i.name for i in (*graph.input, *graph.initializer)}
        known |= {s.values.name for s in graph.sparse_initializer}
        for node in graph.node:
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
        """Check the numbers of inputs and outputs against the operator's schema."""
        key = (node.domain, node.op_type)
        if key not in self.minimum:
            self.minimum[key] = (0, 0)
            # ops without a schema are not checked
            if node.domain in STANDARD_DOMAINS and onnx.defs.has(node.op_type, self.opset):
                schema = onnx.defs.get_schema(node.op_type, self.opset)
                self.minimum[key] = (schema.min_input, schema.min_output)
        inputs, outputs = self.minimum[key]
        if len(node.input) < inputs or len(node.output) < outputs:
            raise ModelError(
                "model-invalid",
                f"node {label(node)!r} has {len(node.input)} inputs and {len(node.output)} "
                f"outputs; {node.op_type} needs at least {inputs} and {outputs}",
            )


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
