"""Comparison in front of operators that turn rounding into something larger.

Two equal networks whose sums are ordered differently may choose other positions in TopK, ArgMax or
NonMaxSuppression, and differ by much from there on; a sigmoid of a very negative number rounds to
another relative error than its input. In both cases the tensors in front are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, numpy_helper

from onnxprune.analysis.groups import Analysis
from onnxprune.ir.dependencies import Dependencies
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import label, nested, subgraphs
from onnxprune.surgery.compare import Outputs, relative_difference

_SELECTS = """
    TopK ArgMax ArgMin NonMaxSuppression NonZero Compress Unique Hardmax Round Floor Ceil Sign
    Greater GreaterOrEqual Less LessOrEqual Equal RoiAlign Mod
"""
# Quantization rounds as well, but quantized models are compared by exact integer sums.
SELECTS = frozenset(_SELECTS.split())  # a small change of an input can change the output by much
_SATURATES = "Sigmoid Softmax HardSigmoid Softplus Exp"
SATURATES = frozenset(_SATURATES.split())  # relative errors of outputs exceed those of inputs
_PASSES = """
    Identity Transpose Reshape Flatten Squeeze Unsqueeze Split Slice Gather GatherElements GatherND
    Cast Clip Expand Tile Pad Dropout ReduceMax ReduceMin ReduceMean MaxPool GlobalMaxPool
"""
# what they return is in the range of what they read, as slots of their operands
PASSES: Mapping[str, slice] = {
    **dict.fromkeys(_PASSES.split(), slice(1)),
    **dict.fromkeys(("Concat", "Max", "Min", "Mul", "Sub", "Add"), slice(None)),
    "Where": slice(1, 3),
}
# largest difference of saturating functions in bodies, whose inputs no run outputs
BODY_ROUNDING = 4 * float(np.finfo(np.float32).eps)
FULL_SCALE = 1.0  # of the outputs of a saturating function, whose rounding is relative to it

Run = Callable[[Sequence[str]], tuple[Outputs, Outputs]]


@dataclass(frozen=True)
class Reconsidered:
    """Differences after a comparison in front of selections and saturating functions.

    Attributes
    ----------
    outputs
        Difference per output that failed before; of the tensors in front where these decide.
    ties
        Labels of the nodes that chose differently on equal inputs.
    """

    outputs: Mapping[str, float]
    ties: tuple[str, ...] = ()


def reconsider(
    analysis: Analysis,
    pruned: Model,
    removed: np.ndarray,
    failed: Collection[str],
    limit: float,
    run: Run,
) -> Reconsidered:
    """Compare the tensors in front of selections and saturating functions.

    Parameters
    ----------
    failed
        Outputs that differ by more than `limit`.
    run
        Runs the masked original and the cut model with further outputs.
    """
    graph = _OutputGraph(analysis.model, pruned, failed)
    heads = {name: graph.saturating_inputs(name) for name in failed}
    selecting = graph.selecting()
    comparison = _Comparison(analysis, removed, graph.common, run)
    comparison.add({*failed, *(n for inputs in heads.values() for n in inputs)})
    comparison.add({n for node in selecting for n in node.output if n})
    tied: list[NodeProto] = []
    after: set[str] = set()
    for node in selecting:
        changed = any(comparison.difference(n) > limit for n in node.output if n)
        # a node behind another tied one has other inputs, so that its choice proves nothing
        if changed and not after & set(node.input):
            tied.append(node)
            after = graph.descendants({o for n in tied for o in n.output if o})
    front = graph.activations_before(after)
    comparison.add(front)
    # nothing in front can be compared: infinite, so that the failure stands
    ahead = max(map(comparison.difference, front), default=float("inf"))
    outputs = {}
    for name in failed:
        if name in after:
            outputs[name] = ahead
        elif heads[name]:
            scaled = _compute_full_scale_difference(*comparison.values(name))
            measured = [head for head in heads[name] if head in graph.producers]
            # no run outputs inputs inside bodies; without them, only rounding is accepted
            if len(measured) < len(heads[name]) and scaled > BODY_ROUNDING:
                outputs[name] = comparison.difference(name)
                continue
            outputs[name] = max([scaled, *map(comparison.difference, measured)])
        else:
            outputs[name] = comparison.difference(name)
    agreed = any(name in after and outputs[name] <= limit for name in failed)
    return Reconsidered(outputs, tuple(label(n) for n in tied) if agreed else ())


class _Comparison:
    """Tensors of the masked original and the cut model, compared where both have them."""

    def __init__(
        self, analysis: Analysis, removed: np.ndarray, common: Collection[str], run: Run
    ) -> None:
        self.analysis, self.removed, self.common, self.run = analysis, removed, common, run
        self.reference: dict[str, Any] = {}
        self.actual: dict[str, Any] = {}

    def add(self, names: Collection[str]) -> None:
        """Run both models for tensors that are not known yet."""
        # one run for many tensors: running a model is what takes time here
        missing = sorted({n for n in names if n in self.common} - self.reference.keys())
        if missing:
            reference, actual = self.run(missing)
            self.reference.update(reference)
            self.actual.update(actual)

    def values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a tensor of the cut model, and the original's at the kept positions."""
        expected = np.asarray(self.reference[name])
        expected = self.analysis.keep_values(name, expected, self.removed)
        return np.asarray(self.actual[name]), expected

    def difference(self, name: str) -> float:
        """Return the relative difference of a tensor; infinite if it cannot be compared."""
        if name not in self.reference:
            return float("inf")
        return relative_difference(*self.values(name))


def _compute_full_scale_difference(actual: object, expected: object) -> float:
    """Return the largest absolute difference over FULL_SCALE, or over larger values."""
    a, b = np.asarray(actual), np.asarray(expected)
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    scale = max(FULL_SCALE, float(np.abs(b).max(initial=0.0)))
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)) / scale


class _OutputGraph(Dependencies):
    """The part of a main graph that computes some outputs."""

    def __init__(self, original: Model, pruned: Model, outputs: Collection[str]) -> None:
        super().__init__(list(original.proto.graph.node))
        self.weights = original.weights
        bodies = [g for g in nested(original.proto.graph) if g is not original.proto.graph]
        self.inner = {o: n for g in bodies for n in g.node for o in n.output if o}
        self.common = {o for n in pruned.proto.graph.node for o in n.output if o}
        self.common &= self.producers.keys()
        self.needed = self.ancestors(outputs)

    def selecting(self) -> list[NodeProto]:
        """Return the selecting nodes in front of the outputs, in topological order."""
        return [n for n in self.nodes if n.op_type in SELECTS and self.needed & set(n.output)]

    def activations_before(self, after: Collection[str]) -> set[str]:
        """Return the activations that the nodes that compute tensors read from the rest."""
        front = self.frontier(after)
        return {n for n in front if n in self.producers and n not in self.weights}

    def _producer(self, name: str) -> NodeProto | None:
        """Return the node, of a body as well, that computes a tensor; None for other tensors."""
        index = self.producers.get(name)
        return self.inner.get(name) if index is None else self.nodes[index]

    def saturating_inputs(self, output: str) -> list[str]:
        """Return the inputs of the saturating functions that all of an output consists of.

        [] if a part of the output comes from elsewhere: its values set the scale then. Constants
        within the scale of saturating functions do not.
        """
        heads: dict[str, None] = {}  # an ordered set
        waiting, seen = [output], {output}
        while waiting:
            name = waiting.pop()
            node = self._producer(name)
            if self._is_small_constant(name):
                continue
            # a branch yields the output: what it consists of is found inside
            if node is not None and node.op_type == "If":
                index = list(node.output).index(name)
                yielded = [body.output[index].name for body in subgraphs(node)]
                waiting += [n for n in yielded if n not in seen]
                seen.update(yielded)
                continue
            if node is None or node.op_type not in SATURATES | PASSES.keys():
                return []
            if node.op_type in SATURATES:
                heads[node.input[0]] = None
                continue
            operands = [n for n in node.input[PASSES[node.op_type]] if n not in seen]
            seen.update(operands)
            waiting += operands
        return list(heads)

    def _is_small_constant(self, name: str) -> bool:
        """Return whether a tensor is a weight or a Constant with values within FULL_SCALE."""
        node = self._producer(name)
        if name in self.weights:
            values = self.weights[name].array()
        elif node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            values = numpy_helper.to_array(node.attribute[0].t)
        else:
            return False
        return values.dtype.kind in "fiu" and bool((np.abs(values) <= FULL_SCALE).all())
