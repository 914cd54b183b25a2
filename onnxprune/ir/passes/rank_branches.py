"""Choice of the branch of an If whose other branch yields a rank that no run survives.

torch.jit writes squeeze of a dynamic axis as If(length == 1, Squeeze(x), x), so that the rank of
the result depends on the input. Where an operator further on takes one rank only, every run that
takes the other branch fails, and the model is equivalent without it.
"""

from __future__ import annotations

from onnx import GraphProto, NodeProto

from onnxprune.errors import ModelError
from onnxprune.ir.inference import infer
from onnxprune.ir.model import EditableModel, ModelView
from onnxprune.ir.nodes import STANDARD_DOMAINS, nested, subgraphs
from onnxprune.ir.passes.fold_constants import inline_branch, inline_branches
from onnxprune.ir.passes.remove_unused import remove_identities
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.subgraphs import branch

MOST_TRIED = 8  # Ifs of a model, each of which takes two inferences of shapes or more
DEEPEST = 4  # conditions that only become known one after another
RECURRENT_RANK = 3
_RECURRENT = ("LSTM", "GRU", "RNN")
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def choose_branch_by_rank(model: EditableModel, shapes: Shapes, tried: set[str]) -> bool:
    """Inline the branch of an If that runs can only take; return whether there is such an If.

    Parameters
    ----------
    tried
        Outputs of the Ifs that were tried before; those tried here are added. A choice often
        decides other Ifs, so one is made at a time.
    """
    for graph in nested(model.proto.graph):
        for name in _list_open(graph, shapes):
            if name in tried or len(tried) == MOST_TRIED:
                continue
            tried.add(name)
            survives = [_survives(model, name, condition) for condition in (True, False)]
            # only one branch survives: every run that ends takes it
            if survives[0] != survives[1]:
                inline_branch(graph, name, survives[0])
                return True
    return False


def _list_open(graph: GraphProto, shapes: Shapes) -> list[str]:
    """Return outputs of Ifs of several ranks on which an operator of one rank depends."""
    names: list[str] = []
    needed: set[str] = set()
    for node in reversed(graph.node):
        if needed & set(node.output) and _depends_on_rank(node, shapes):
            names.append(node.output[0])
        bodies = [g for body in subgraphs(node) for g in nested(body)]
        nodes = [node, *(n for g in bodies for n in g.node)]
        selective = any(n.op_type in _RECURRENT + _CONVOLUTIONS for n in nodes)
        if selective or needed & set(node.output):
            # bodies read, and yield, tensors of the graphs around them by name
            needed.update(name for n in nodes for name in n.input)
            needed.update(value.name for g in bodies for value in g.output)
    return names[::-1]


def _find_owner(model: ModelView, name: str) -> GraphProto | None:
    """Return the graph with the If that yields a tensor."""
    for graph in nested(model.proto.graph):
        if any(n.op_type == "If" and name in n.output for n in graph.node):
            return graph
    return None


def _depends_on_rank(node: NodeProto, shapes: Shapes) -> bool:
    """Return whether the branches of an If yield a tensor of different known ranks."""
    if node.op_type != "If" or node.domain not in STANDARD_DOMAINS:
        return False
    bodies = [branch(node, condition) for condition in (True, False)]
    if len({len(body.output) for body in bodies}) != 1:
        return False
    for pair in zip(*(body.output for body in bodies), strict=True):
        dims = [shapes.shape(value.name) for value in pair]
        # ranks that differ are what makes the choice of a branch matter to a consumer
        if None not in dims and len({len(d or ()) for d in dims}) > 1:
            return True
    return False


def _survives(model: ModelView, name: str, condition: bool) -> bool:
    """Return whether a run may end in which the If that yields a tensor takes one branch.

    The nodes of the graph around the If run whenever it does, so that it need not be the main one.
    """
    trial = model.edit()
    owner = _find_owner(trial, name)
    if owner is None:
        raise ValueError(f"no If yields {name!r}")
    inline_branch(owner, name, condition)
    try:
        for _ in range(DEEPEST):
            remove_identities(trial)
            shapes = infer(trial)
            if _fails(owner, shapes):
                return False
            if not inline_branches(trial.proto.graph, shapes):
                break
    except ModelError:  # the shapes contradict each other, perhaps in a graph that does not run
        return owner is not trial.proto.graph
    return True


def _fails(graph: GraphProto, shapes: Shapes) -> bool:
    """Return whether a node of a graph rejects the rank of its operand in every run."""
    for node in graph.node:
        if node.domain not in STANDARD_DOMAINS:
            continue
        if node.op_type == "If" and all(_fails(body, shapes) for body in subgraphs(node)):
            return True
        expected = _expected_rank(node, shapes)
        dims = shapes.shape(node.input[0]) if node.input else None
        if expected is not None and dims is not None and len(dims) != expected:
            return True
    return False


def _expected_rank(node: NodeProto, shapes: Shapes) -> int | None:
    """Return the only rank that an operator takes as its first operand; None if there are more."""
    if node.op_type in _RECURRENT:
        return RECURRENT_RANK
    if node.op_type in _CONVOLUTIONS and len(node.input) > 1:
        weight = shapes.shape(node.input[1])
        return None if weight is None else len(weight)
    return None
