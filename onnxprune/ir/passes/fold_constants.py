"""Folding of nodes whose value is known for any input, and inlining of branches that always run."""

from __future__ import annotations

from onnx import GraphProto, NodeProto, helper

from onnxprune.ir.edit import add_weight, replace_nodes
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS, nested, subgraphs
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.subgraphs import branch
from onnxprune.ir.weights import from_array


def fold_constants(model: EditableModel, shapes: Shapes) -> bool:
    """Replace nodes of known value by initializers, except those that produce graph outputs.

    Return whether there are any.
    """
    changed = False
    for graph in nested(model.proto.graph):
        outputs = {o.name for o in graph.output}
        kept = []
        for node in graph.node:
            value = shapes.value(node.output[0]) if len(node.output) == 1 else None
            # a graph output stays the output of a node
            if value is None or node.output[0] in outputs:
                kept.append(node)
                continue
            # evaluation uses int64 for partly known values; the graph declares the type
            dtype = shapes.dtype(node.output[0])
            if dtype and helper.np_dtype_to_tensor_dtype(value.dtype) != dtype:
                value = value.astype(helper.tensor_dtype_to_np_dtype(dtype))
            add_weight(model, node.output[0], from_array(value))
        if len(kept) != len(graph.node):
            replace_nodes(graph, kept)
            changed = True
    return changed


def inline_branches(graph: GraphProto, shapes: Shapes) -> bool:
    """Replace each If of constant condition by the nodes of the branch that runs.

    Leaves Identity nodes. Return whether anything changed, in the graph or its bodies.
    """
    nodes: list[NodeProto] = []
    changed_inside = changed = False
    for node in graph.node:
        # inner branches first: the outer If may be inlined with them
        for body in subgraphs(node):
            changed_inside |= inline_branches(body, shapes)
        taken = _find_taken_branch(node, shapes)
        if taken is None or len(taken.output) != len(node.output):
            nodes.append(node)
            continue
        changed = True
        nodes += _splice_branch(graph, node, taken)
    if changed:
        replace_nodes(graph, nodes)
    return changed or changed_inside


def inline_branch(graph: GraphProto, output: str, condition: bool) -> None:
    """Replace the If that yields a tensor by the nodes of one of its branches."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        taken = branch(node, condition) if node.op_type == "If" and output in node.output else None
        nodes += [node] if taken is None else _splice_branch(graph, node, taken)
    replace_nodes(graph, nodes)


def _splice_branch(graph: GraphProto, node: NodeProto, taken: GraphProto) -> list[NodeProto]:
    """Return the nodes that replace an If which always runs one branch."""
    # names are unique, so the branch can join the graph without renaming
    graph.value_info.extend(taken.value_info)
    graph.sparse_initializer.extend(taken.sparse_initializer)
    pairs = zip(taken.output, node.output, strict=True)
    names = [helper.make_node("Identity", [a.name], [b]) for a, b in pairs if b]
    return [*taken.node, *names]


def _find_taken_branch(node: NodeProto, shapes: Shapes) -> GraphProto | None:
    """Return the body that an If always runs; None for other nodes and unknown conditions."""
    if node.op_type != "If" or node.domain not in STANDARD_DOMAINS or not node.input:
        return None
    condition = shapes.value(node.input[0])
    if condition is None or condition.size != 1:
        return None
    return branch(node, condition.item())
