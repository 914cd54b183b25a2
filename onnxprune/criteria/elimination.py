"""Optimal-brain-surgeon elimination of whole channels on second moments.

A reader multiplies columns with second moments G by weights W. Dropping the columns S and refitting the rest costs
tr(W_S ((G^-1)_SS)^-1 W_S^T) (Hassibi and Stork 1993; for blocks see OSSCAR 2403.12983). W enters through W^T W only, so the
cost does not grow with the number of outputs. Several readers of one group are eliminated together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RIDGE = 1e-3  # of the mean diagonal of G; below it the inverse follows noise of the calibration set
STEPS = 64  # eliminations a group; larger groups go several channels a step


@dataclass
class Reader:
    """moments: (K, K) G, float64; weight: (K, K) W^T W, or W^T F W with a weight F of output errors; index: (channels, m) columns that a
    channel occupies; absolute: whether errors count as they are, not relative to the output's.
    """

    moments: np.ndarray
    weight: np.ndarray
    index: np.ndarray
    absolute: bool = False

    @property
    def scale(self) -> float:
        """What an error is multiplied by: one over the output's variance, summed; or 1."""
        return (
            1.0
            if self.absolute
            else 1.0 / max(float(np.einsum("ij,ij->", self.moments, self.weight)), 1e-30)
        )


def inverse(moments: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """(G + ridge * mean diagonal)^-1, symmetric."""
    from scipy.linalg import lapack

    size = len(moments)
    lifted = moments + np.eye(size) * max(ridge * float(np.trace(moments)) / max(size, 1), 1e-12)
    factor, info = lapack.dpotrf(lifted, lower=1)
    if info == 0:
        found, info = lapack.dpotri(factor, lower=1)
        if info == 0:
            return np.tril(found) + np.tril(found, -1).T
    return np.linalg.pinv(lifted, hermitian=True)


def eliminate(
    readers: Sequence[Reader], size: int, steps: int = STEPS
) -> tuple[np.ndarray, np.ndarray]:
    """Order of removal of all channels of a group, and what each removal costs.

    Returns
    -------
    order : (size,) channel indices, the first to go first
    cost : (size,) increase of the summed output error of the readers, >= 0; several removed at once share it
    """
    work = [_Work(inverse(r.moments), r.weight.copy(), r.index.copy(), r.scale) for r in readers]
    alive: np.ndarray = np.arange(size)
    order: list[int] = []
    cost = np.zeros(size)
    while len(alive):
        scores = sum(w.scale * _block_costs(w.g, w.p, w.index[alive]) for w in work)
        take = min(max(1, size // steps), len(alive))
        chosen = alive[np.argsort(scores, kind="stable")[:take]]
        total = sum(w.scale * w.remove(w.index[chosen].ravel()) for w in work)
        cost[len(order) : len(order) + take] = max(float(total), 0.0) / take
        order += chosen.tolist()
        alive = alive[~np.isin(alive, chosen)]
    return np.array(order, np.int64), cost


@dataclass
class _Work:
    """A reader under elimination. g: inverse of G; p: W^T W; index: columns by channel, in the numbering of g; scale: 1 / energy."""

    g: np.ndarray
    p: np.ndarray
    index: np.ndarray
    scale: float
    gone: int = 0

    def remove(self, s: np.ndarray) -> float:
        """Eliminate columns s; the cost. Both matrices are symmetric updates of rank |s|."""
        g, p = self.g, self.p
        block = np.linalg.pinv(g[np.ix_(s, s)], hermitian=True)
        pss = p[np.ix_(s, s)].copy()
        rows = g[s].copy()
        step = block @ rows
        side = p[:, s] - 0.5 * step.T @ pss
        change = side @ step
        p -= change
        p -= change.T
        g -= rows.T @ step
        g[s], p[s] = 0.0, 0.0
        g[:, s], p[:, s] = 0.0, 0.0
        g[s, s] = 1e-18
        self.gone += len(s)
        if self.gone * 3 > len(g):
            self.compress()
        return float(np.einsum("ij,ji->", block, pss))

    def compress(self) -> None:
        """Leave out the columns that are gone."""
        stay = np.flatnonzero(np.diagonal(self.g) != 1e-18)
        place = np.zeros(len(self.g), np.int64)
        place[stay] = np.arange(len(stay))
        self.index = place[self.index]
        self.g, self.p = self.g[np.ix_(stay, stay)], self.p[np.ix_(stay, stay)]
        self.gone = 0


def _block_costs(g: np.ndarray, p: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Cost of removing each channel alone."""
    rows, columns = index[:, :, None], index[:, None, :]
    blocks = g[rows, columns]
    if index.shape[1] == 1:
        return p[rows, columns].ravel() / np.maximum(blocks.ravel(), 1e-30)
    return np.einsum(
        "cij,cji->c",
        np.linalg.pinv(blocks, hermitian=True) if _singular(blocks) else np.linalg.inv(blocks),
        p[rows, columns],
    )


def _singular(blocks: np.ndarray) -> bool:
    diagonal = np.diagonal(blocks, axis1=1, axis2=2)
    return bool((diagonal <= 1e-20).any())


def refitted(weight: np.ndarray, inverse_moments: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """W (O, K) with columns `gone` at zero and the others refitted: W - W_S ((G^-1)_SS)^-1 (G^-1)_S."""
    if not len(gone):
        return weight
    block = np.linalg.solve(inverse_moments[np.ix_(gone, gone)], inverse_moments[gone])
    out = weight - weight[:, gone] @ block
    out[:, gone] = 0.0
    return out
