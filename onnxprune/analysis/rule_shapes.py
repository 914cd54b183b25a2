"""Output shapes by rows of the rule table, for operators that onnx does not know."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from onnxprune.analysis.apply import shapes
from onnxprune.analysis.rule import Misfit
from onnxprune.analysis.rules import row
from onnxprune.analysis.state import Node, Record, Tensor
from onnxprune.errors import OnnxpruneError
from onnxprune.ir.inference import ShapeFallback
from onnxprune.ir.model import Model, ModelView
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import Dim

# What a row or a movement function raises on a graph that onnx would not accept
INVALID_NODE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def shapes_by_rule(model: ModelView) -> ShapeFallback:
    """Return a function that infers shapes by rows, for operators that onnx does not know."""
    records: list[Record] = []  # one for all nodes, created on first use

    def infer_outputs(node: NodeProto, known: Shapes) -> Sequence[tuple[Dim, ...] | None]:
        try:
            entry = row(node.op_type, node.domain)
            if entry is None or any(n and known.shape(n) is None for n in node.input):
                return ()
            if not records:
                records.append(Record(Model(model.proto, model.weights, model.path), known))
            operands = [
                Tensor([None] * len(known.shape(n) or ())) if n else None for n in node.input
            ]
            view = Node(records[0], node, operands, list(node.input))
            rule = entry(view) if callable(entry) else entry
            return shapes(view, rule) if rule is not None else ()
        except (Misfit, OnnxpruneError, *INVALID_NODE):  # the pass reports it
            return ()

    return infer_outputs
