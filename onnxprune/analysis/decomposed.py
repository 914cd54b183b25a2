"""Normalizations written as several nodes: ReduceMean, Sub, Pow, Sqrt, Div, Mul.

A mean may also be a ReduceSum that is divided, or a product with a matrix of one value.

The rows of these operators see one node each: a mean over channels sums them, and a subtraction
keeps them apart. Together they mix the channels, as the fused operator does: where the mean is
subtracted from the channels that it was taken over, a removed channel is not zero. So this pass
follows what reductions return until it meets the reduced channels again:

- added to them (or subtracted): the axis is mixed. It is frozen, or opened by `allow_mixing`.
- multiplied with them: zeros remain zeros, and the cut is exact. If a root is between
  (RMSNormalization), scale and epsilon take over the change of the number of channels, so that
  runtimes still recognize the normalization.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.averages import Average
from onnxprune.analysis.movement import MOVES
from onnxprune.analysis.ops.elementwise import elementwise
from onnxprune.analysis.root_means import find_root_means
from onnxprune.analysis.rules import row
from onnxprune.analysis.state import Record
from onnxprune.ir.nodes import STANDARD_DOMAINS

_Axes = tuple[np.ndarray, ...]
# Operators that are not elementwise, whose first operand carries a statistic to the output
_PASSING = frozenset("CastLike Dropout Expand Reshape Squeeze Tile Transpose Unsqueeze".split())
# tf2onnx writes the mean over the last of three axes as pooling
_MEANS = ("ReduceMean", "GlobalAveragePool")
_REDUCING = ("Reduce", "GlobalAveragePool")
_MULTIPLYING = frozenset(("Mul", "Div"))
_SOFTMAX = "Softmax"
_MATRIX = 2  # axes
_LEAST_GROUPED_RANK = 3  # (batch, groups, channels and positions)


@dataclass(frozen=True)
class _Statistic:
    """What a tensor holds of a reduction over channels.

    Attributes
    ----------
    axes
        Ids of the reduced axes.
    nodes
        Indices of the reductions that it was computed by.
    name
        Fused operator of such a normalization.
    centered
        Whether it was added to the channels, so that the tensor holds mixed ones.
    """

    axes: _Axes
    nodes: frozenset[int]
    name: str
    centered: bool = False


def find_decomposed(record: Record, allow_mixing: Collection[str]) -> None:
    """Freeze the axes that nodes mix together, and record the roots of means.

    Parameters
    ----------
    record
        Record of a finished pass; changed in place.
    allow_mixing
        Fused operators whose mixed axes are opened. Their decomposed forms then average over the
        kept channels, as the fused ones do.
    """
    reductions: dict[int, _Axes] = {}
    for mask in record.masks:
        node = record.nodes[mask.node]
        if node.op_type.startswith(_REDUCING) or _sums_equally(record, node, mask.slot):
            reductions[mask.node] = (*reductions.get(mask.node, ()), mask.ids)
    if not reductions:
        return
    flow = _StatisticsPass(record, reductions, frozenset(allow_mixing))
    flow.run()
    if flow.opened:
        record.averages = [a for a in record.averages if a.node not in flow.opened]
        record.masks = [m for m in record.masks if m.node not in flow.opened]
    find_root_means(record)
    # after it, because the sums of opened normalizations are not corrected in scale and epsilon
    for index in sorted(flow.opened):
        if record.nodes[index].op_type not in _MEANS:
            # a constant divides it, by the number of channels before the cut
            record.averages.append(Average(index, reductions[index], of_kept=True))


def _sums_equally(record: Record, node: NodeProto, slot: int) -> bool:
    """Return whether a node multiplies an operand by a matrix of one value: a sum or a mean."""
    if node.op_type != "MatMul" or node.domain not in STANDARD_DOMAINS:
        return False
    weight = record.model.weights.get(node.input[1 - slot])
    if weight is None or len(weight.shape) > _MATRIX:
        return False
    values = weight.array()
    # the ends first: most weights differ there
    ends = values.size > 1 and values.flat[0] == values.flat[-1]
    return bool(ends and (values == values.flat[0]).all())


class _StatisticsPass:
    """The statistics of all tensors, in the order of the nodes.

    Attributes
    ----------
    opened
        Indices of reductions of normalizations whose mixed axes were opened.
    """

    def __init__(
        self, record: Record, reductions: dict[int, _Axes], allow_mixing: frozenset[str]
    ) -> None:
        self.record = record
        self.reductions = reductions
        self.allow_mixing = allow_mixing
        self.statistics: dict[str, tuple[_Statistic, ...]] = {}
        self.opened: set[int] = set()
        self.producers = {o: n.op_type for n in record.nodes for o in n.output}

    def run(self) -> None:
        """Follow the statistics through all nodes."""
        # statistics are computed by reductions: nothing before the first one has any
        for index in range(min(self.reductions), len(self.record.nodes)):
            node = self.record.nodes[index]
            if index in self.reductions:
                self.statistics[node.output[0]] = self.reduce(index, node)
                continue
            if self.statistics.keys().isdisjoint(node.input):
                continue
            result = self.outputs(node)
            if result:
                self.statistics.update(dict.fromkeys(filter(None, node.output), result))

    def outputs(self, node: NodeProto) -> tuple[_Statistic, ...]:
        """Return the statistics of the outputs of a node; none if it sums or moves channels."""
        standard, entry = node.domain in STANDARD_DOMAINS, row(node.op_type, node.domain)
        if entry is elementwise:
            return tuple(self.combine(node))
        if standard and node.op_type in _PASSING:
            return self.statistics.get(node.input[0], ())
        if entry is None and not (standard and node.op_type in MOVES):
            # an unknown operator may return any function of the statistics
            return tuple(self.merge([s for n in node.input for s in self.statistics.get(n, ())]))
        return ()

    def reduce(self, index: int, node: NodeProto) -> tuple[_Statistic, ...]:
        """Return the statistics of a reduction: its own, and those over other axes."""
        axes = self.reductions[index]
        own = _Statistic(axes, frozenset((index,)), self.name(index, node))
        others = []
        for known in self.statistics.get(node.input[0], ()):
            if not self.overlap(known.axes, axes):
                others.append(known)
                continue
            # the variance of centered channels belongs to the normalization that centers them
            own = replace(own, nodes=own.nodes | known.nodes, name=known.name)
            if known.centered:
                self.mix(own)
        return (own, *others)

    def combine(self, node: NodeProto) -> Iterable[_Statistic]:
        """Yield the statistics of an elementwise node, and report the axes that it mixes."""
        # the condition of a Where selects values and adds nothing to them
        slots = range(1 if node.op_type == "Where" else 0, len(node.input))
        operands = [(slot, self.statistics.get(node.input[slot], ())) for slot in slots]
        for merged in self.merge([s for _, statistics in operands for s in statistics]):
            plain = [
                slot
                for slot, statistics in operands
                if not any(self.overlap(s.axes, merged.axes) for s in statistics)
                and self.carries(node.input[slot], merged.axes)
            ]
            if node.op_type == "Div":
                plain = [slot for slot in plain if slot == 0]
            # a product with channels that are zero if removed is zero too, and a residual
            # connection adds a normalized tensor to them, which counts as a tensor of its own
            exponential = bool(plain) and self.is_exponential(node.input[plain[0]])
            softmax = merged.name == _SOFTMAX and exponential
            if plain and (merged.centered or (node.op_type in _MULTIPLYING and not softmax)):
                continue
            result = replace(merged, centered=True) if plain else merged
            if result.centered:
                self.mix(result)
            yield result

    def merge(self, statistics: Sequence[_Statistic]) -> list[_Statistic]:
        """Return one statistic per axis."""
        result: list[_Statistic] = []
        for new in statistics:
            same = [i for i, known in enumerate(result) if self.overlap(known.axes, new.axes)]
            for i in reversed(same):
                known = result.pop(i)
                nodes, centered = known.nodes | new.nodes, known.centered or new.centered
                new = replace(known, nodes=nodes, centered=centered)
            result.append(new)
        return result

    def mix(self, statistic: _Statistic) -> None:
        """Freeze the axes of a statistic, or open them."""
        if statistic.name in self.allow_mixing:
            # once per statistic, as several nodes may mix it
            if not statistic.nodes <= self.opened:
                self.record.mixed.extend(statistic.axes)
                self.opened |= statistic.nodes
            return
        node = self.record.nodes[min(statistic.nodes)]
        text = f"decomposed {statistic.name} mixes along this axis"
        why = self.record.reason(text, node, node.input[0])
        for axis in statistic.axes:
            self.record.causes.freeze(axis, why)

    def name(self, index: int, node: NodeProto) -> str:
        """Return the fused operator whose statistic a reduction computes."""
        if self.is_exponential(node.input[0]):
            return _SOFTMAX
        tensor = self.record.tensors.get(node.input[0])
        rank = len(tensor.axes) if tensor is not None else 0
        axes = [m.axis for m in self.record.masks if m.node == index]
        grouped = self.producers.get(node.input[0]) == "Reshape" and rank >= _LEAST_GROUPED_RANK
        return "GroupNormalization" if grouped and min(axes) >= 2 else "LayerNormalization"

    def is_exponential(self, name: str) -> bool:
        """Return whether a tensor holds exponentials, which are not zero where channels are."""
        return self.producers.get(name) == "Exp"

    def carries(self, name: str, axes: _Axes) -> bool:
        """Return whether a tensor is an activation that has the channels of these axes."""
        tensor = self.record.tensors.get(name)
        if tensor is None or tensor.constant:
            return False
        return self.overlap(tuple(a for a in tensor.axes if isinstance(a, np.ndarray)), axes)

    def overlap(self, first: _Axes, second: _Axes) -> bool:
        """Return whether two lists of axes have a free cause in common."""
        if any(a is b for a in first for b in second):
            return True
        if not first or not second:
            return False
        free = self.record.causes.free
        return not set(free(np.concatenate(first))).isdisjoint(free(np.concatenate(second)))
