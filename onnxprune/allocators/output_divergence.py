"""Divergence between the heads of two networks, accumulated over batches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np
from onnx import NodeProto

from onnxprune.errors import ModelError
from onnxprune.ir.compared import may_choose_rows
from onnxprune.ir.extract import extract
from onnxprune.ir.heads import Head, find_heads, tensors_of
from onnxprune.ir.io import Model
from onnxprune.ir.model import ModelView
from onnxprune.ir.runtime import Session
from onnxprune.ir.shapes import Shapes
from onnxprune.metrics.head_divergence import HeadDivergence, position_weights
from onnxprune.statistics.segmented_run import SegmentedRun


def divergence_after(
    run: SegmentedRun,
    model: Model,
    nodes: Sequence[NodeProto],
    expected: Sequence[Mapping[str, np.ndarray]],
    every: int = 1,
) -> float:
    """Compute the divergence of a network whose nodes are replaced after a run's position.

    Parameters
    ----------
    run
        Activations at the position.
    model, nodes
        Replacement: these nodes of `model` follow the position.
    expected
        Values of the original per batch, by name: those of `original_values`.
    every
        Use one of this many batches.

    Returns
    -------
    float
        Sum of the heads' divergences. Outputs that are no floats count as equal.
    """
    known = _KNOWN.setdefault(run, _Known())
    heads = known.list_heads(run)
    # all heads precede the position, where both networks are equal
    if not heads:
        return 0.0
    outputs = [head.tensor for head in heads]
    session = Session(
        extract(model, run.shapes, nodes, set(run.state[0]), outputs), threads=run.threads
    )
    part = expected[::every]
    divergences = [
        HeadDivergence(head, known.find_variation(head, expected) * len(part) / len(expected))
        for head in heads
    ]
    feeds = ({n: state[n] for n in session.inputs} for state in run.state[::every])
    for (_, actual), reference in zip(session.run_each(feeds), part, strict=True):
        for divergence in divergences:
            _update(divergence, reference, actual[divergence.head.tensor])
    return sum(d.result() for d in divergences)


class _Known:
    """What all measurements of a run share.

    Attributes
    ----------
    starts
        Positions after which other nodes may choose rows; see `_starts`.
    heads
        Heads by number of these positions that are passed.
    variations
        Variation of the original by tensor.
    """

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.heads: dict[int, tuple[Head, ...]] = {}
        self.variations: dict[str, float] = {}

    def list_heads(self, run: SegmentedRun) -> list[Head]:
        """Return the heads to compare after a run's position.

        A tensor inside the network that is produced before the position is equal in both networks.
        """
        self.starts = self.starts or _starts(run.model)
        passed = bisect_right(self.starts, run.at)
        if passed not in self.heads:
            self.heads[passed] = find_heads(run.model, self.starts[passed - 1], run.shapes)
        outputs = {o.name for o in run.model.proto.graph.output}
        return [
            head
            for head in self.heads[passed]
            if head.tensor in outputs or run.place(head.tensor) >= run.at
        ]

    def find_variation(self, head: Head, expected: Sequence[Mapping[str, np.ndarray]]) -> float:
        """Return the variation of a head in the original; 0 for others than floats."""
        if head.tensor not in self.variations:
            divergence = HeadDivergence(head)
            if expected[0][head.tensor].dtype.kind == "f":
                for reference in expected:
                    divergence.describe(reference)
                self.variations[head.tensor] = divergence.variation
            else:
                self.variations[head.tensor] = 0.0
        return self.variations[head.tensor]


# per run, as long as it is used
_KNOWN: WeakKeyDictionary[SegmentedRun, _Known] = WeakKeyDictionary()


def _update(
    divergence: HeadDivergence, reference: Mapping[str, np.ndarray], actual: np.ndarray
) -> None:
    """Add a batch of one head."""
    head = divergence.head
    expected = reference[head.tensor]
    if expected.dtype.kind != "f":
        return
    if expected.shape != actual.shape:
        raise ModelError(
            "divergence-shape",
            f"a compared output changes its shape from {expected.shape} to {actual.shape}, so "
            "that its divergence cannot be measured; use --fast, which chooses widths by the error "
            "of single layers",
        )
    divergence.update(expected, actual, position_weights(head, reference))


def original_values(
    model: Model,
    batches: Sequence[Mapping[str, np.ndarray]],
    threads: int = 1,
    shapes: Shapes | None = None,
) -> list[dict[str, np.ndarray]]:
    """Return the values of the original per batch that `divergence_after` compares with."""
    names = dict.fromkeys(o.name for o in model.proto.graph.output)
    for start in _starts(model):
        names |= dict.fromkeys(tensors_of(find_heads(model, start, shapes)))
    inner = len(names) > len(model.proto.graph.output)
    session = Session(model, list(names) if inner else None, threads=threads)
    return [values for _, values in session.run_each(batches)]


def _starts(model: ModelView) -> list[int]:
    """Return 0 and the position after each node that may choose rows."""
    rows = [i + 1 for i, n in enumerate(model.proto.graph.node) if may_choose_rows(n)]
    return [0, *rows]
