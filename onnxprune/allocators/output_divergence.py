"""Divergence between the heads of two networks, accumulated over batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto

from onnxprune.errors import ModelError
from onnxprune.ir.compared import may_choose_rows
from onnxprune.ir.extract import extract
from onnxprune.ir.heads import Head, find_heads, tensors_of
from onnxprune.ir.io import Model
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
    heads = _list_heads_after(run)
    # all heads precede the position, where both networks are equal
    if not heads:
        return 0.0
    outputs = [head.tensor for head in heads]
    session = Session(
        extract(model, run.shapes, nodes, set(run.state[0]), outputs), threads=run.threads
    )
    divergences = [HeadDivergence(head) for head in heads]
    for state, reference in zip(run.state[::every], expected[::every], strict=True):
        actual = session.run({n: state[n] for n in session.inputs})
        for divergence in divergences:
            _update(divergence, reference, actual[divergence.head.tensor])
    return sum(d.result() for d in divergences)


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
            "that its divergence cannot be measured; use --fast, which does without",
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
    return [session.run(b) for b in batches]


def _starts(model: Model) -> list[int]:
    """Return 0 and the position after each node that may choose rows."""
    rows = [i + 1 for i, n in enumerate(model.proto.graph.node) if may_choose_rows(n)]
    return [0, *rows]


def _list_heads_after(run: SegmentedRun) -> list[Head]:
    """Return the heads to compare after a run's position.

    A tensor inside the network that is produced before the position is equal in both networks.
    """
    outputs = {o.name for o in run.model.proto.graph.output}
    heads = find_heads(run.model, run.at, run.shapes)
    return [h for h in heads if h.tensor in outputs or run.place(h.tensor) >= run.at]
