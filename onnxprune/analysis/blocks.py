"""Branches that can be removed: residual blocks, attention, squeeze-and-excitation gates.

If a group keeps no channel, the linear layers that consume it return their bias, a constant. If
such constants are only added to (multiplied with, ...) a tensor that is kept, the nodes that
computed the channels are not needed any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, linears
from onnxprune.analysis.ops.elementwise import elementwise
from onnxprune.analysis.rules import row
from onnxprune.errors import UsageError
from onnxprune.ir.nodes import attribute, captured, label


@dataclass(frozen=True)
class Collapse:
    """What a cut changes in a graph in which groups keep no channel.

    Attributes
    ----------
    folded
        Indices of the nodes whose output becomes a constant, in graph order.
    biases
        Those of them that lose all their inputs and return their bias.
    constants
        Outputs of `folded` that kept nodes consume.
    unneeded
        Indices of the nodes that no output depends on any more, `folded` included.
    """

    folded: tuple[int, ...]
    biases: dict[int, Linear]
    constants: tuple[str, ...]
    unneeded: frozenset[int]


def collapse(analysis: Analysis, removed: np.ndarray) -> Collapse:
    """Return what becomes of the nodes after axes of which no position is kept.

    Parameters
    ----------
    analysis
        Analysis of the model.
    removed
        Causes that are removed, see `Analysis.removed`.

    Raises
    ------
    UsageError
        A kept node would consume a tensor without channels, or a constant in its place.
    """
    return _MainGraph(analysis).collapse(removed)


def removable_branches(analysis: Analysis) -> dict[str, tuple[str, ...]]:
    """Return the groups that need not keep a channel.

    All of these branches can be removed at once. If several groups stand for the same branch, or
    of two branches only one can be removed, the first is returned. Costs one pass over the axes
    per group.

    Returns
    -------
    branches
        Group -> all groups that are removed with it, itself first.
    """
    flow = _MainGraph(analysis)
    branches: dict[str, tuple[str, ...]] = {}
    for group in analysis.groups:
        try:
            unneeded = flow.collapse(analysis.removed({group.name: ()})).unneeded
            branch = (group.name, *sorted(flow.groups_in(unneeded) - {group.name}))
            # with all branches before it
            # a branch alone may be removable, and not together with those before it
            together = (*branch, *(name for known in branches.values() for name in known))
            flow.collapse(analysis.removed(dict.fromkeys(together, ())))
        except UsageError:
            continue
        # the same branch, found from another of its groups
        if not any(set(branch) == set(known) for known in branches.values()):
            branches[group.name] = branch
    return branches


class _MainGraph:
    """Nodes of the main graph and the tensors between them."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        weights, graph = analysis.model.weights, analysis.model.proto.graph
        self.nodes = analysis.nodes[: len(graph.node)]
        self.graph_outputs = {o.name for o in graph.output}
        self.linear = {layer.node: layer for layer in linears(analysis)}
        self.producers = {o: i for i, n in enumerate(self.nodes) for o in n.output if o}
        self.inputs: list[list[str]] = []  # activations per node, those that bodies read included
        self.consumers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            names = dict.fromkeys((*node.input, *sorted(captured(node))))
            self.inputs.append([n for n in names if n and n not in weights])
            for name in self.inputs[-1]:
                self.consumers.setdefault(name, []).append(i)
        axes = [
            (name, analysis.axes.number(a))
            for name, t in analysis.record.tensors.items()
            for a in t.axes
            if isinstance(a, np.ndarray) and len(a)
        ]
        self.axis_tensors = [name for name, _ in axes]
        self.axis_numbers = np.array([n for _, n in axes], np.int64)
        used = [
            (use.node, analysis.axes.number(a))
            for use in analysis.uses
            for a in use.axes
            if isinstance(a, np.ndarray) and len(a)
        ]
        self.weight_nodes = np.array([node for node, _ in used], np.int64)
        self.weight_numbers = np.array([number for _, number in used], np.int64)
        self.users = {
            g.name: {analysis.uses[m.use].node for m in analysis.members(g.name)}
            for g in analysis.groups
        }

    def collapse(self, removed: np.ndarray) -> Collapse:
        """Return what becomes of the nodes; see the function."""
        lengths = self.analysis.axes.lengths(removed)
        empty = {self.axis_tensors[i] for i in np.flatnonzero(lengths[self.axis_numbers] == 0)}
        biases: dict[int, Linear] = {}
        constant: dict[str, int] = {}  # output -> node
        blocked: list[int] = []  # nodes that consume what they cannot take
        # in graph order: all constants that a node can get are known when it is visited
        heap = sorted({i for name in empty for i in self.consumers.get(name, ())})
        seen = set(heap)
        while heap:
            i = heappop(heap)
            if self.computes_empty(i, empty):
                continue  # dropped with its channels
            if self.returns_bias(i, empty, lengths):
                biases[i] = self.linear[i]
            elif not self.folds(i, constant):
                if not self.accepts(i, empty, constant):
                    blocked.append(i)
                continue
            out = self.nodes[i].output[0]
            constant[out] = i
            for consumer in self.consumers.get(out, ()):
                if consumer not in seen:
                    seen.add(consumer)
                    heappush(heap, consumer)
        folded = set(constant.values())
        # a blocked node is no obstacle if nothing depends on it any more
        for i in blocked:
            if self.needed(i, empty, folded):
                raise self.refusal(i, empty, constant)
        self.check_producers(empty)
        emptied = {self.producers[name] for name in empty}
        unneeded = self.unneeded(
            {i for i in emptied if self.computes_empty(i, empty)} | folded | set(blocked)
        )
        self.check_weights(lengths, unneeded)
        consumed = tuple(
            name
            for name in constant
            if any(c not in unneeded for c in self.consumers.get(name, ()))
        )
        return Collapse(tuple(sorted(folded)), biases, consumed, frozenset(unneeded))

    def check_producers(self, empty: set[str]) -> None:
        """Raise if a tensor without channels is no output of a node of the main graph."""
        stray = next((name for name in sorted(empty) if name not in self.producers), None)
        if stray is not None:
            raise UsageError(
                "group-whole",
                f"no channel of {stray!r} is kept, which no node of the main graph computes; "
                "keep at least one",
            )

    def check_weights(self, lengths: np.ndarray, unneeded: set[int]) -> None:
        """Raise if a kept node would read an initializer without positions."""
        emptied = self.weight_nodes[lengths[self.weight_numbers] == 0].tolist()
        for i in sorted(set(emptied) - unneeded):
            name = label(self.analysis.nodes[i])
            raise UsageError(
                "group-whole",
                f"no channel of a weight of node {name!r} is kept, which other channels pass; "
                "keep at least one",
            )

    def computes_empty(self, i: int, empty: set[str]) -> bool:
        """Return whether no output of a node has a position."""
        return all(o in empty for o in self.nodes[i].output if o)

    def returns_bias(self, i: int, empty: set[str], lengths: np.ndarray) -> bool:
        """Return whether a node is a linear layer that loses all of its inputs."""
        layer = self.linear.get(i)
        if layer is None or layer.ids is None or layer.data not in empty:
            return False
        # a graph output keeps its name and shape, and other inputs make the result no constant
        if layer.out in self.graph_outputs or self.inputs[i] != [layer.data]:
            return False
        return not lengths[self.analysis.axes.number(layer.ids)]

    def folds(self, i: int, constant: dict[str, int]) -> bool:
        """Return whether a node of constants alone has an output that is constant everywhere."""
        node = self.nodes[i]
        # a graph output remains the output of a node
        if len(node.output) != 1 or node.output[0] in self.graph_outputs:
            return False
        if not all(n in constant for n in self.inputs[i]):
            return False
        # its statistics are weights, so that equal inputs give equal outputs
        norm = (
            node.op_type == "BatchNormalization"
            and self.inputs[i] == [node.input[0]]
            and not attribute(node, "training_mode", 0)
        )
        return norm or node.op_type == "Transpose" or self.broadcasts(i)

    def accepts(self, i: int, empty: set[str], constant: dict[str, int]) -> bool:
        """Return whether a node joins constants with a tensor that has its output's shape."""
        node, shapes = self.nodes[i], self.analysis.shapes
        live = [n for n in self.inputs[i] if n not in constant]
        if not self.broadcasts(i) or len(node.output) != 1 or empty.intersection(live):
            return False
        # a constant that broadcasts the other tensor to another shape would have to be expanded
        shape = shapes.shape(node.output[0])
        if shape is None or None in shape:
            return False
        return any(shapes.shape(n) == shape for n in live)

    def broadcasts(self, i: int) -> bool:
        """Return whether a node is elementwise."""
        return row(self.nodes[i].op_type, self.nodes[i].domain) is elementwise

    def needed(self, start: int, empty: set[str], folded: set[int]) -> bool:
        """Return whether a graph output depends on a node through kept nodes."""
        stack, seen = [start], {start}
        while stack:
            for name in self.nodes[stack.pop()].output:
                if name in self.graph_outputs:
                    return True
                # an empty tensor is computed by a node that is dropped with its channels
                if name in empty:
                    continue
                for consumer in self.consumers.get(name, ()):
                    if consumer in seen or consumer in folded:
                        continue
                    if not self.computes_empty(consumer, empty):
                        seen.add(consumer)
                        stack.append(consumer)
        return False

    def unneeded(self, known: set[int]) -> set[int]:
        """Return these nodes, and those that compute tensors for them alone."""
        stack = list(known)
        while stack:
            for name in self.inputs[stack.pop()]:
                producer = self.producers.get(name)
                if producer is None or producer in known:
                    continue
                outs = self.nodes[producer].output
                consumers = [c for o in outs for c in self.consumers.get(o, ())]
                # only if all outputs are read by nodes that are dropped as well
                if not self.graph_outputs.intersection(outs) and known.issuperset(consumers):
                    known.add(producer)
                    stack.append(producer)
        return known

    def groups_in(self, nodes: frozenset[int]) -> set[str]:
        """Return the groups whose weights only these nodes use."""
        return {name for name, users in self.users.items() if users <= nodes}

    def refusal(self, i: int, empty: set[str], constant: dict[str, int]) -> UsageError:
        """Return the error for a kept node that would consume an empty tensor or a constant."""
        node = self.nodes[i]
        name = next((n for n in self.inputs[i] if n in empty or n in constant), label(node))
        what = "would be a constant" if name in constant else "would have no channel"
        return UsageError(
            "group-whole",
            f"a group cannot lose all channels: {name!r} {what}, and node {label(node)!r} "
            f"({node.op_type}) consumes it; a branch can be removed if only linear layers consume "
            "its channels, whose outputs are added to other tensors, and if all its groups are "
            "removed together; keep at least one channel of each group",
        )
