"""Dependencies between the tensors of a main graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from onnx import NodeProto

from onnxprune.ir.extract import reads

SIZES = frozenset("Shape Size".split())  # their outputs depend on lengths, not on values


class Dependencies:
    """Dependencies between the tensors of a main graph.

    Attributes
    ----------
    nodes
        Nodes in topological order.
    reads
        Tensors that each of them reads, also inside its bodies.
    producers
        Position of the node that computes a tensor, by the name of the tensor.
    """

    def __init__(self, nodes: Sequence[NodeProto]) -> None:
        self.nodes = nodes
        self.reads = [reads(node) for node in nodes]
        self.producers = {o: i for i, node in enumerate(nodes) for o in node.output if o}

    def descendants(self, names: Iterable[str], ignored: Collection[str] = ()) -> set[str]:
        """Return the tensors that depend on others, these included.

        Parameters
        ----------
        ignored
            Operators whose outputs do not count as dependent.
        """
        after = set(names)
        # one pass is enough: the nodes are in topological order
        for node, inputs in zip(self.nodes, self.reads, strict=True):
            if node.op_type not in ignored and after & inputs:
                after |= {o for o in node.output if o}
        return after

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """Return the tensors that others depend on, these included."""
        needed, waiting = set(names), list(names)
        while waiting:
            index = self.producers.get(waiting.pop())
            fresh = self.reads[index] - needed if index is not None else set()
            needed |= fresh
            waiting += fresh
        return needed

    def frontier(self, inside: Collection[str]) -> set[str]:
        """Return the tensors outside that the nodes that compute those inside read.

        Weights and inputs of the model are among them.
        """
        front: set[str] = set()
        for node, inputs in zip(self.nodes, self.reads, strict=True):
            if any(o in inside for o in node.output):
                front |= inputs
        return front.difference(inside)


def sort_nodes(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Return nodes in topological order, as far as possible in the given one.

    Raises
    ------
    ValueError
        A node depends on its own outputs.
    """
    graph = Dependencies(nodes)
    result: list[NodeProto] = []
    done: set[int] = set()
    for first in range(len(nodes)):
        stack = [first]
        while stack:
            index = stack[-1]
            producers = (graph.producers.get(name) for name in graph.reads[index])
            waiting = [p for p in producers if p is not None and p not in done and p != index]
            if index in done or not waiting:
                stack.pop()
                if index not in done:
                    done.add(index)
                    result.append(nodes[index])
                continue
            if set(waiting) & set(stack):
                raise ValueError(f"node {nodes[index].name!r} depends on its own outputs")
            stack.append(waiting[0])
    return result
