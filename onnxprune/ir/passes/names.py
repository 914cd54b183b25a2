"""Unique tensor names across the main graph and all bodies."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, helper

from onnxprune.ir.edit import free_name
from onnxprune.ir.nodes import nested, normalizes_by_batch


def rename_duplicates(graph: GraphProto) -> None:
    """Rename tensors of sibling bodies, so that a name means one tensor in the entire model."""
    taken: set[str] = set()
    for inner in nested(graph):
        defined = [i.name for i in (*inner.input, *inner.initializer)]
        defined += [s.values.name for s in inner.sparse_initializer]
        for node in inner.node:
            defined += node.output
        if inner is not graph:
            renamed: dict[str, str] = {}
            # the first definition keeps its name, also in the main graph
            for name in filter(None, defined):
                if name in taken:
                    renamed[name] = free_name(name, taken | set(defined))
                    taken.add(renamed[name])
            if renamed:
                rename(inner, renamed)
        taken |= set(defined)


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors of a body and of the bodies inside it."""
    # bodies inside are renamed as well, since they read tensors of the graphs around them
    for inner in nested(graph):
        for item in (
            *inner.input,
            *inner.output,
            *inner.initializer,
            *(s.values for s in inner.sparse_initializer),
            *inner.value_info,
        ):
            item.name = names.get(item.name, item.name)
        for node in inner.node:
            node.input[:] = [names.get(n, n) for n in node.input]
            node.output[:] = [names.get(n, n) for n in node.output]


def name_body_outputs(graph: GraphProto) -> None:
    """Insert an Identity for each outer tensor that a body returns, which onnxruntime rejects."""
    _, *bodies = graphs = list(nested(graph))
    if not bodies:
        return
    taken: set[str] = set()
    for inner in graphs:
        taken.update(i.name for i in (*inner.input, *inner.initializer))
        for node in inner.node:
            taken.update(node.output)
    for body in bodies:
        # a tensor of the body's own needs no copy
        inside = {i.name for i in body.input}
        for node in body.node:
            inside.update(node.output)
        for output in body.output:
            # the Identity makes a copy that belongs to the body
            if output.name not in inside:
                name = free_name(output.name, taken)
                taken.add(name)
                body.node.append(helper.make_node("Identity", [output.name], [name], name=name))
                output.name = name


def name_batch_statistics(graph: GraphProto) -> None:
    """Name all outputs of BatchNormalization in training mode.

    onnxruntime (1.32) writes the running statistics without a check, and crashes if one is unnamed.
    """
    for inner in nested(graph):
        for node in inner.node:
            if normalizes_by_batch(node) and any(node.output[:1]):
                names = list(node.output) + [""] * (3 - len(node.output))
                for i, what in enumerate(("mean", "variance"), 1):
                    names[i] = names[i] or f"{names[0]}/running_{what}"
                node.output[:] = names
