"""Which weights of a layer stay, chosen together with the values of those that do: ADMM on the layer's least-squares problem.

The weights W that change a layer's output least, tr (W - W0) H (W - W0)', with as many zeros as are asked for: a copy of W without the zeros and one
with them are drawn together, each step solving one of both exactly. Scores that look at one weight at a time do not see that
of two inputs which say the same only one may go. The errors of layers become a fifth to a third smaller for it. Units: a weight times the root of its
column's second moment, so that large weights of small inputs do not count as large.
Source: Boyd et al., Distributed optimization by ADMM, 2011, section 9.1; for weights of layers Meng et al., ALPS, NeurIPS 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.sparsify.refit import damped
from onnxprune.statistics.im2col import Moments

STEPS = 30
PENALTY, GROWTH = (
    0.1,
    1.08,
)  # of the distance between both copies, in units of a second moment; a step more, so many times stronger


def selected(
    rows: np.ndarray,
    moments: Sequence[Moments],
    biased: bool,
    project: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """True where a weight stays, (groups, outputs, columns).

    Parameters
    ----------
    rows
        Dense weights, (groups, outputs, columns).
    moments
        A group each: of the columns and a last one of ones.
    biased
        Whether a bias takes up the mean of what goes.
    project
        Scores, higher = keep -> True where a weight stays; the same number for any scores.
    """
    h = np.stack([_free(damped(m, rows.shape[2], biased)[0], rows.shape[2]) for m in moments])
    size = np.sqrt(np.diagonal(h, axis1=1, axis2=2))[:, None, :]
    values, axes = np.linalg.eigh((h / size / size.swapaxes(1, 2)).astype(np.float32))
    values, back = values[:, None, :], axes.swapaxes(1, 2)
    dense = (rows * size).astype(np.float32)
    wanted, sparse, price, penalty = (
        (dense @ axes * values) @ back,
        dense,
        np.zeros_like(dense),
        PENALTY,
    )
    for _ in range(STEPS):
        free = ((wanted - price + penalty * sparse) @ axes / (values + penalty)) @ back
        drawn = free + price / penalty
        kept = project(np.square(drawn))
        sparse = np.where(kept, drawn, 0)
        price = price + penalty * (free - sparse)
        penalty *= GROWTH
    return kept


def _free(h: np.ndarray, size: int) -> np.ndarray:
    """Without the bias, which is always at its best."""
    return (
        h
        if len(h) == size
        else h[:size, :size] - np.outer(h[:size, size], h[size, :size]) / h[size, size]
    )
