"""Joint selection of kept weights and their values by ADMM on a layer's least-squares problem.

The objective is the change of the layer's output, tr (W - W0) H (W - W0)', for a given number of
zeros. A dense copy of W and a sparse one are drawn together; each step solves one of both exactly.
Scores of single weights do not see that of two inputs with the same information only one may be
removed. Layer errors become a fifth to a third smaller.

Weights are scaled by the root of their column's second moment, so that large weights of small
inputs do not count as large.

Source: Boyd et al. 2011, "Distributed Optimization and Statistical Learning via ADMM", section
9.1; for weights of layers Meng et al. 2024, "ALPS" (NeurIPS).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.sparsify.refit import damped_gram
from onnxprune.statistics.im2col import Moments

STEPS = 30
PENALTY = 0.1  # weight of the distance between both copies; a second moment is 1 after scaling
GROWTH = 1.08  # factor on the penalty per step


def select_jointly(
    rows: np.ndarray,
    moments: Sequence[Moments],
    biased: bool,
    project: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return the mask of kept weights, (groups, outputs, columns).

    Parameters
    ----------
    rows
        Dense weights, (groups, outputs, columns).
    moments
        Per group, of the columns and a last column of ones.
    biased
        True if a bias absorbs the mean of the removed inputs.
    project
        Scores, higher = keep -> mask, True = kept; the number of kept weights is constant.
    """
    size = rows.shape[2]
    h = np.stack([_eliminate_bias(damped_gram(m, size, biased)[0], size) for m in moments])
    scale = np.sqrt(np.diagonal(h, axis1=1, axis2=2))[:, None, :]
    correlation = (h / scale / scale.swapaxes(1, 2)).astype(np.float32)
    # one decomposition serves all steps, whose penalties differ
    values, axes = np.linalg.eigh(correlation)
    values, back = values[:, None, :], axes.swapaxes(1, 2)
    dense = (rows * scale).astype(np.float32)
    right = (dense @ axes * values) @ back
    sparse, dual, penalty = dense, np.zeros_like(dense), PENALTY
    for _ in range(STEPS):
        # in the eigenvectors of H the dense copy's linear system is diagonal
        free = ((right - dual + penalty * sparse) @ axes / (values + penalty)) @ back
        drawn = free + dual / penalty
        kept = project(np.square(drawn))
        sparse = np.where(kept, drawn, 0)
        dual = dual + penalty * (free - sparse)
        # a small penalty explores masks first, a large one makes both copies agree
        penalty *= GROWTH
    return kept


def _eliminate_bias(h: np.ndarray, size: int) -> np.ndarray:
    """Return the Schur complement of the bias, which always takes its optimal value."""
    if len(h) == size:
        return h
    return h[:size, :size] - np.outer(h[:size, size], h[size, :size]) / h[size, size]
