"""Divergence between the outputs of two networks, accumulated over batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto

from onnxprune.errors import ModelError
from onnxprune.ir.compared import may_choose_rows, tensors_to_compare
from onnxprune.ir.extract import extract
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.ir.shapes import Shapes
from onnxprune.metrics.tempered import Tempered
from onnxprune.statistics.segmented_run import SegmentedRun

_TINY = 1e-12  # least energy of an output, for outputs that are zero


class OutputDivergence:
    """Divergence of one output.

    Class scores (rank 2 with several columns) diverge by Kullback-Leibler at a temperature at which
    the original is not saturated, other float outputs by relative squared error. Outputs that are
    not float count as equal.
    """

    def __init__(self) -> None:
        self._tempered: Tempered | None = None
        self._error = self._energy = 0.0

    def update(self, expected: np.ndarray, actual: np.ndarray) -> None:
        """Add a batch of the original's and the changed network's output."""
        if expected.dtype.kind != "f":
            return
        if expected.shape != actual.shape:
            raise ModelError(
                "divergence-shape",
                f"a compared output changes its shape from {expected.shape} to {actual.shape}, so "
                "that its divergence cannot be measured; use --fast, which does without",
            )
        if expected.ndim == 2 and expected.shape[1] > 1:
            # the first batch shows which kind of output this is
            self._tempered = self._tempered or Tempered()
            self._tempered.update(expected, actual)
            return
        # in float32 a sum over many batches would lose small terms
        difference = actual.astype(np.float64) - expected
        self._error += float(np.square(difference).sum())
        self._energy += float(np.square(expected, dtype=np.float64).sum())

    def result(self) -> float:
        """Return the divergence in nats, or the relative squared error."""
        if self._tempered:
            return self._tempered.result().kl
        return self._error / max(self._energy, _TINY)


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
        Sum of the outputs' divergences.
    """
    outputs = _list_names_after(run)
    # all compared tensors precede the position, where both networks are equal
    if not outputs:
        return 0.0
    session = Session(
        extract(model, run.shapes, nodes, set(run.state[0]), outputs), threads=run.threads
    )
    divergences = {name: OutputDivergence() for name in outputs}
    for state, reference in zip(run.state[::every], expected[::every], strict=True):
        actual = session.run({n: state[n] for n in session.inputs})
        for name, divergence in divergences.items():
            divergence.update(reference[name], actual[name])
    return sum(d.result() for d in divergences.values())


def original_values(
    model: Model,
    batches: Sequence[Mapping[str, np.ndarray]],
    threads: int = 1,
    shapes: Shapes | None = None,
) -> list[dict[str, np.ndarray]]:
    """Return the values of the original per batch that `divergence_after` compares with."""
    names = dict.fromkeys(o.name for o in model.proto.graph.output)
    for start in _starts(model):
        names |= dict.fromkeys(tensors_to_compare(model, start, shapes).tensors)
    inner = len(names) > len(model.proto.graph.output)
    session = Session(model, list(names) if inner else None, threads=threads)
    return [session.run(b) for b in batches]


def _starts(model: Model) -> list[int]:
    """Return 0 and the position after each node that may choose rows."""
    rows = [i + 1 for i, n in enumerate(model.proto.graph.node) if may_choose_rows(n)]
    return [0, *rows]


def _list_names_after(run: SegmentedRun) -> list[str]:
    """Return the tensors to compare after a run's position.

    A tensor inside the network that is produced before the position is equal in both networks.
    """
    compared = tensors_to_compare(run.model, run.at, run.shapes)
    before = {n for n in compared.inner if run.place(n) < run.at}
    return [n for n in compared.tensors if n not in before]
