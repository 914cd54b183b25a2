"""Divergence between the outputs of two networks, accumulated over batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto

from onnxprune.ir.extract import extract
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
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
        if expected.ndim == 2 and expected.shape[1] > 1:
            self._tempered = self._tempered or Tempered()
            self._tempered.update(expected, actual)
            return
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
        Outputs of the original by name, per batch.
    every
        Use one of this many batches.

    Returns
    -------
    float
        Sum of the outputs' divergences.
    """
    outputs = [o.name for o in model.proto.graph.output]
    session = Session(
        extract(model, run.shapes, nodes, set(run.state[0]), outputs), threads=run.threads
    )
    divergences = {name: OutputDivergence() for name in outputs}
    for state, reference in zip(run.state[::every], expected[::every], strict=True):
        actual = session.run({n: state[n] for n in session.inputs})
        for name, divergence in divergences.items():
            divergence.update(reference[name], actual[name])
    return sum(d.result() for d in divergences.values())
