"""Tells nodes that break their operator's definition from rules that fail on valid nodes."""

from __future__ import annotations

import onnx
from onnx import numpy_helper, shape_inference

from onnxprune.analysis.state import Node
from onnxprune.ir.nodes import STANDARD_DOMAINS, label

FAILED = "its rule failed, which is a defect of onnxprune or of a plug-in"


def explain_failure(node: Node, problem: Exception) -> tuple[str, str]:
    """Return why the axes of a node are frozen whose rule raised an exception.

    Returns
    -------
    reason
        What onnx says of an invalid node, else that the rule failed.
    defect
        What to report; "" for an invalid node.
    """
    invalid = _check_definition(node)
    if invalid:
        return f"{node.op} is not used as its definition says ({invalid})", ""
    defect = (
        f"the rule of {node.op} failed at node {label(node.proto)!r} "
        f"({type(problem).__name__}: {problem}); its channels are kept. This is a defect of "
        "onnxprune or of a plug-in: report it with the model"
    )
    return FAILED, defect


def _check_definition(node: Node) -> str:
    """Return the first line of what onnx says of an invalid node; "" if it accepts the node."""
    proto, model = node.proto, node.record.model.proto
    # operators of other domains have no definition that onnx could check
    if proto.domain not in STANDARD_DOMAINS:
        return ""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {o.domain: o.version for o in model.opset_import}
    shapes = node.record.shapes
    # with shapes and constants, since many rules are about lengths that the schema cannot state
    kinds = {n: shapes.types[n] for n in proto.input if n in shapes.types}
    values = {n: shapes.value(n) for n in proto.input if n}
    constants = {
        n: numpy_helper.from_array(v.copy(), n) for n, v in values.items() if v is not None
    }
    try:
        onnx.checker.check_node(proto, context)
        schema = onnx.defs.get_schema(proto.op_type, node.opset, "")
        shape_inference.infer_node_outputs(
            schema, proto, kinds, constants, {}, list(model.opset_import), model.ir_version
        )
    # onnx raises RuntimeError, ValueError and its own errors
    except Exception as problem:
        return (str(problem).strip() or type(problem).__name__).splitlines()[0]
    return ""
