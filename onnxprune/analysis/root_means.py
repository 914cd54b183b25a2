"""Divisions by the root of a mean (RMSNormalization) that are written as several nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from onnxprune.analysis.averages import Average, RootMean
from onnxprune.analysis.state import FLOATS, Record
from onnxprune.ir.nodes import nested

_MOST_STEPS = 8  # nodes between the mean and the scale; exporters write at most six


@dataclass(frozen=True)
class _Step:
    """A node as the only consumer of a tensor.

    Attributes
    ----------
    index
        Index of the node.
    node
        The node.
    slot
        Index of the operand that the tensor is.
    """

    index: int
    node: NodeProto
    slot: int

    @property
    def other(self) -> int:
        """Index of the other operand of a node with two."""
        return 1 - self.slot


def find_root_means(record: Record) -> None:
    """Record the means whose root divides; scale and epsilon correct them instead of a factor."""
    if not record.averages:
        return
    finder = _Finder(record)
    averages = []
    for average in record.averages:
        root_mean = finder.match(average)
        if root_mean is None:
            averages.append(average)
        else:
            record.root_means.append(root_mean)
    record.averages = averages


class _Finder:
    """The consumers of all tensors."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.consumers: dict[str, list[_Step]] = {}
        for index, node in enumerate(record.nodes):
            for slot, name in enumerate(node.input):
                self.consumers.setdefault(name, []).append(_Step(index, node, slot))
        self.outputs = {o.name for g in nested(record.model.proto.graph) for o in g.output}

    def match(self, average: Average) -> RootMean | None:
        """Return epsilon and scale of a mean: mean + epsilon, a root, a division, a scale."""
        epsilon: tuple[int, int | str] | None = None
        exponent = 1.0  # the value grows by n / k to this power if epsilon * n / k is added
        for step in self.steps(average.node):
            op, rooted = step.node.op_type, exponent != 1.0
            # added before the root only; later, it would be no part of what is rooted
            if op == "Add" and not rooted and epsilon is None and self.is_number(step):
                epsilon = (step.index, step.other)
            elif op == "Sqrt" and not rooted:
                exponent = 0.5
            elif op == "Pow" and not rooted and step.slot == 0:
                power = self.record.shapes.value(step.node.input[1])
                if power is None or power.size != 1 or abs(power.item()) != 0.5:
                    return None
                exponent = float(power.item())
            # 1 / sqrt(m): further on the value shrinks where it grew
            elif rooted and (op == "Reciprocal" or (op == "Div" and step.slot == 1)):
                exponent = -exponent
            elif rooted and op == "Mul" and self.is_weight(step):
                return RootMean(average.axes, epsilon, (step.index, step.other), -exponent)
            # casts, and scaling after the root, change no power of n / k
            elif op != "Cast" and not (rooted and op in ("Mul", "Div")):
                return None
        return None

    def steps(self, node: int) -> Iterator[_Step]:
        """Yield the nodes after a node while each result has one consumer."""
        for _ in range(_MOST_STEPS):
            name = self.record.nodes[node].output[0]
            consumers = self.consumers.get(name, [])
            # another consumer, or a graph output, would see the value without the correction
            if len(consumers) != 1 or name in self.outputs:
                return
            yield consumers[0]
            node = consumers[0].index

    def is_weight(self, step: _Step) -> bool:
        """Return whether the other operand is a floating-point initializer."""
        weight = self.record.model.weights.get(step.node.input[step.other])
        return weight is not None and weight.dtype in FLOATS

    def is_number(self, step: _Step) -> bool:
        """Return whether the other operand is an initializer of one element."""
        weight = self.record.model.weights.get(step.node.input[step.other])
        return weight is not None and weight.dtype in FLOATS and set(weight.shape) <= {1}
