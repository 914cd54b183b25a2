"""Branches that can go whole: with no channel of a group left, the linear layers that read it give their bias, which is a constant.

Where such constants are added to (multiplied with, ...) something else that stays, what made the channels is needed no more: the branch of a
residual block, the gate of a squeeze-and-excitation.
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
    """What a cut makes of a graph where groups go whole.

    folded: nodes (by number) whose output becomes a constant, in graph order; readers: those of them that lose all their inputs, and give their bias;
    constants: outputs of `folded` that nodes which stay read; unneeded: nodes that nothing needs any more, `folded` among them.
    """

    folded: tuple[int, ...]
    readers: dict[int, Linear]
    constants: tuple[str, ...]
    unneeded: frozenset[int]


def collapse(analysis: Analysis, removed: np.ndarray) -> Collapse:
    """What becomes of the nodes behind axes of which nothing is left.

    Raises
    ------
    UsageError
        A node that stays would have to work on a tensor without channels, or on a constant in its place.
    """
    return _Flow(analysis).collapse(removed)


def whole_blocks(analysis: Analysis) -> dict[str, tuple[str, ...]]:
    """Groups of which no channel has to stay -> all groups that go with them, themselves first. All blocks can go at once.

    Where several groups stand for one block, or of two blocks only one can go, it is the first. Costs a pass over the axes a group.
    """
    flow = _Flow(analysis)
    found: dict[str, tuple[str, ...]] = {}
    for group in analysis.groups:
        try:
            unneeded = flow.collapse(analysis.removed({group.name: ()})).unneeded
            block = (group.name, *sorted(flow.groups_in(unneeded) - {group.name}))
            flow.collapse(
                analysis.removed(
                    dict.fromkeys(
                        (*block, *(name for known in found.values() for name in known)), ()
                    )
                )
            )
        except UsageError:
            continue
        if not any(set(block) == set(known) for known in found.values()):
            found[group.name] = block
    return found


class _Flow:
    """The nodes of the main graph and what is between them."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.weights = analysis, analysis.model.weights
        graph = analysis.model.proto.graph
        self.nodes = analysis.record.nodes[: len(graph.node)]
        self.ends = {o.name for o in graph.output}
        self.linear = {li.node: li for li in linears(analysis)}
        self.makers = {o: i for i, n in enumerate(self.nodes) for o in n.output if o}
        self.inputs = [
            [
                n
                for n in dict.fromkeys((*node.input, *sorted(captured(node))))
                if n and n not in self.weights
            ]
            for node in self.nodes
        ]
        self.readers: dict[str, list[int]] = {}
        for i, names in enumerate(self.inputs):
            for name in names:
                self.readers.setdefault(name, []).append(i)
        tensors = analysis.record.tensors
        axes = [
            (name, analysis.axes.number(a))
            for name, t in tensors.items()
            for a in t.axes
            if isinstance(a, np.ndarray) and len(a)
        ]
        self.axis_of, self.axis_number = (
            [name for name, _ in axes],
            np.array([n for _, n in axes], np.int64),
        )
        self.users: dict[str, set[int]] = {
            g.name: {analysis.record.uses[m.use].node for m in analysis.members(g.name)}
            for g in analysis.groups
        }

    def collapse(self, removed: np.ndarray) -> Collapse:
        """As the function."""
        lengths = self.analysis.axes.lengths(removed)
        empty = {self.axis_of[i] for i in np.flatnonzero(lengths[self.axis_number] == 0)}
        readers: dict[int, Linear] = {}
        constant: dict[str, int] = {}
        held: list[int] = []
        heap = sorted({i for name in empty for i in self.readers.get(name, ())})
        met = set(heap)
        while heap:
            i = heappop(heap)
            if self.made_empty(i, empty):
                continue
            if self.gives_bias(i, empty, lengths):
                readers[i] = self.linear[i]
            elif not self.folds(i, constant):
                if not self.takes(i, empty, constant):
                    held.append(i)
                continue
            out = self.nodes[i].output[0]
            constant[out] = i
            for reader in self.readers.get(out, ()):
                if reader not in met:
                    met.add(reader)
                    heappush(heap, reader)
        folded = set(constant.values())
        for i in held:
            if self.needed(i, empty, folded):
                raise self.refusal(i, empty, constant)
        stray = next((name for name in sorted(empty) if name not in self.makers), None)
        if stray is not None:
            raise UsageError(
                "group-whole",
                f"no channel is left of {stray!r}, which no node of the main graph makes: keep at least one",
            )
        unneeded = self.unneeded(
            {self.makers[name] for name in empty if self.made_empty(self.makers[name], empty)}
            | folded
            | set(held)
        )
        stay = tuple(
            name for name in constant if any(r not in unneeded for r in self.readers.get(name, ()))
        )
        return Collapse(tuple(sorted(folded)), readers, stay, frozenset(unneeded))

    def made_empty(self, i: int, empty: set[str]) -> bool:
        """Whether all that a node makes has no positions."""
        return all(o in empty for o in self.nodes[i].output if o)

    def gives_bias(self, i: int, empty: set[str], lengths: np.ndarray) -> bool:
        """Whether a linear node loses all of its inputs."""
        linear = self.linear.get(i)
        if (
            linear is None
            or linear.ids is None
            or linear.data not in empty
            or linear.out in self.ends
        ):
            return False
        return not lengths[self.analysis.axes.number(linear.ids)] and self.inputs[i] == [
            linear.data
        ]

    def folds(self, i: int, constant: dict[str, int]) -> bool:
        """Whether a node of constants alone gives one that stands for its output everywhere."""
        node = self.nodes[i]
        if (
            len(node.output) != 1
            or node.output[0] in self.ends
            or not all(n in constant for n in self.inputs[i])
        ):
            return False
        norm = (
            node.op_type == "BatchNormalization"
            and self.inputs[i] == [node.input[0]]
            and not attribute(node, "training_mode", 0)
        )
        return norm or node.op_type == "Transpose" or self.by_element(i)

    def takes(self, i: int, empty: set[str], constant: dict[str, int]) -> bool:
        """Whether a node joins constants with something that has its output's shape."""
        node, shapes = self.nodes[i], self.analysis.shapes
        live = [n for n in self.inputs[i] if n not in constant]
        if not self.by_element(i) or len(node.output) != 1 or empty.intersection(live):
            return False
        shape = shapes.shape(node.output[0])
        return (
            shape is not None and None not in shape and any(shapes.shape(n) == shape for n in live)
        )

    def by_element(self, i: int) -> bool:
        """Whether the rule of a node's op is broadcasting."""
        return row(self.nodes[i].op_type, self.nodes[i].domain) is elementwise

    def needed(self, start: int, empty: set[str], folded: set[int]) -> bool:
        """Whether an output of the graph comes from a node by way of nodes that stay."""
        stack, seen = [start], {start}
        while stack:
            for name in self.nodes[stack.pop()].output:
                if name in self.ends:
                    return True
                fresh = (
                    []
                    if name in empty
                    else [
                        r
                        for r in self.readers.get(name, ())
                        if r not in seen and r not in folded and not self.made_empty(r, empty)
                    ]
                )
                seen.update(fresh)
                stack += fresh
        return False

    def unneeded(self, known: set[int]) -> set[int]:
        """These nodes, and those that make things for them alone."""
        stack = list(known)
        while stack:
            for name in self.inputs[stack.pop()]:
                maker = self.makers.get(name)
                if maker is None or maker in known:
                    continue
                outs = self.nodes[maker].output
                if not self.ends.intersection(outs) and all(
                    r in known for o in outs for r in self.readers.get(o, ())
                ):
                    known.add(maker)
                    stack.append(maker)
        return known

    def groups_in(self, nodes: frozenset[int]) -> set[str]:
        """Groups that only these nodes' weights hold."""
        return {name for name, users in self.users.items() if users <= nodes}

    def refusal(self, i: int, empty: set[str], constant: dict[str, int]) -> UsageError:
        """Why this cannot be."""
        node = self.nodes[i]
        name = next((n for n in self.inputs[i] if n in empty or n in constant), label(node))
        what = "would be a constant" if name in constant else "would have no channel"
        return UsageError(
            "group-whole",
            f"a group cannot go whole: {name!r} {what}, and node {label(node)!r} ({node.op_type}) works on it; a group goes whole where linear layers alone read it "
            "whose outputs are added to other tensors, with all groups of that branch; keep a channel of each group",
        )
