"""Optimal-brain-surgeon elimination of channels on second moments.

A consumer multiplies columns with second moments G by weights W. Removing the columns S and
refitting the rest increases its squared output error by

    tr(W_S ((G^-1)_SS)^-1 W_S')

(Hassibi and Stork 1993, eq. 5, for one column; OSSCAR, Meng et al. 2024, arXiv 2403.12983, for
blocks). W enters through W'W only, so that the cost does not depend on the number of outputs. All
consumers of a group are eliminated together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Added to the diagonal of G, relative to its mean. A smaller ridge lets the inverse follow the
# sampling noise of the calibration set.
RIDGE = 1e-3
STEPS = 64  # eliminations per group; of larger groups each removes several channels
_REMOVED = 1e-18  # diagonal of the inverse in removed columns: marks them, and divides safely
_SINGULAR = 1e-20  # diagonal of a block below which it is not invertible
_TINY_ENERGY = 1e-30


@dataclass
class Consumer:
    """A node that sums over the channels of a group, K columns in all.

    Attributes
    ----------
    moments
        (K, K) second moments G of its input columns, float64.
    weight
        (K, K) W'W, or W'FW for a weight F of output errors.
    index
        (channels, m) columns that each channel occupies.
    absolute
        True if errors are not divided by the output's energy, since F makes them comparable.
    """

    moments: np.ndarray
    weight: np.ndarray
    index: np.ndarray
    absolute: bool = False

    @property
    def scale(self) -> float:
        """Factor on its errors: 1, or 1 / the output's energy tr(W G W')."""
        if self.absolute:
            return 1.0
        return 1.0 / max(float(np.einsum("ij,ij->", self.moments, self.weight)), _TINY_ENERGY)


def inverse(moments: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """Compute (G + ridge * mean diagonal * I)^-1.

    By Cholesky decomposition; by eigenvalues if G is not positive definite.
    """
    from scipy.linalg import lapack

    size = len(moments)
    lifted = moments + np.eye(size) * max(ridge * float(np.trace(moments)) / max(size, 1), 1e-12)
    factor, info = lapack.dpotrf(lifted, lower=1)
    if info == 0:
        lower, info = lapack.dpotri(factor, lower=1)
        if info == 0:  # dpotri writes the lower triangle only
            return np.tril(lower) + np.tril(lower, -1).T
    return np.linalg.pinv(lifted, hermitian=True)


def eliminate(
    consumers: Sequence[Consumer], size: int, steps: int = STEPS
) -> tuple[np.ndarray, np.ndarray]:
    """Remove all channels of a group in turn, the cheapest first.

    Parameters
    ----------
    size
        Number of channels.
    steps
        Number of eliminations; each removes about size / steps channels.

    Returns
    -------
    order : (size,) int
        Channel indices in the order of removal.
    cost : (size,) float64
        Increase of the consumers' summed output error per removal, >= 0. Channels removed in one
        step share its cost equally.
    """
    work = [
        _Elimination(inverse(c.moments), c.weight.copy(), c.index.copy(), c.scale)
        for c in consumers
    ]
    alive: np.ndarray = np.arange(size)
    order: list[int] = []
    cost = np.zeros(size)
    while len(alive):
        scores = sum(w.scale * _compute_block_costs(w.g, w.p, w.index[alive]) for w in work)
        take = min(max(1, size // steps), len(alive))
        chosen = alive[np.argsort(scores, kind="stable")[:take]]
        total = sum(w.scale * w.remove(w.index[chosen].ravel()) for w in work)
        cost[len(order) : len(order) + take] = max(float(total), 0.0) / take
        order += chosen.tolist()
        alive = alive[~np.isin(alive, chosen)]
    return np.array(order, np.int64), cost


@dataclass
class _Elimination:
    """A consumer during elimination.

    Attributes
    ----------
    g
        Inverse of G restricted to the kept columns.
    p
        W'W of the refitted weights.
    index
        Columns of each channel, in the numbering of `g`.
    scale
        Factor on errors.
    removed
        Number of removed columns that `g` still holds.
    """

    g: np.ndarray
    p: np.ndarray
    index: np.ndarray
    scale: float
    removed: int = 0

    def remove(self, s: np.ndarray) -> float:
        """Remove the columns s and return the cost.

        Refitted weights are W - W_S A g_S with A = (g_SS)^-1, so that p changes by a symmetric
        matrix of rank 2 |s|, and g by one of rank |s|.
        """
        g, p = self.g, self.p
        a = np.linalg.pinv(g[np.ix_(s, s)], hermitian=True)
        p_ss = p[np.ix_(s, s)].copy()
        g_s = g[s].copy()
        step = a @ g_s
        # half of the change of p: the other half is its transpose
        change = (p[:, s] - 0.5 * step.T @ p_ss) @ step
        p -= change
        p -= change.T
        g -= g_s.T @ step
        g[s], p[s] = 0.0, 0.0
        g[:, s], p[:, s] = 0.0, 0.0
        g[s, s] = _REMOVED
        self.removed += len(s)
        # later updates are cheaper on smaller matrices, but compressing copies both
        if self.removed * 3 > len(g):
            self.compress()
        return float(np.einsum("ij,ji->", a, p_ss))

    def compress(self) -> None:
        """Drop the removed columns from the matrices."""
        kept = np.flatnonzero(np.diagonal(self.g) != _REMOVED)
        renumber = np.zeros(len(self.g), np.int64)
        renumber[kept] = np.arange(len(kept))
        self.index = renumber[self.index]
        self.g, self.p = self.g[np.ix_(kept, kept)], self.p[np.ix_(kept, kept)]
        self.removed = 0


def _compute_block_costs(g: np.ndarray, p: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the (channels,) cost of removing each channel alone."""
    rows, columns = index[:, :, None], index[:, None, :]
    blocks = g[rows, columns]
    if index.shape[1] == 1:
        return p[rows, columns].ravel() / np.maximum(blocks.ravel(), _TINY_ENERGY)
    return np.einsum("cij,cji->c", invert_blocks(blocks), p[rows, columns])


def invert_blocks(blocks: np.ndarray) -> np.ndarray:
    """Invert (n, k, k) symmetric blocks, singular ones by eigenvalues.

    Constant or repeated inputs give singular blocks that the ridge does not always lift above the
    rounding of their inverse.
    """
    if not _is_any_singular(blocks):
        try:
            return np.linalg.inv(blocks)
        except np.linalg.LinAlgError:  # a block is singular although its diagonal is not small
            return np.linalg.pinv(blocks, hermitian=True)
    return np.linalg.pinv(blocks, hermitian=True)


def _is_any_singular(blocks: np.ndarray) -> bool:
    diagonal = np.diagonal(blocks, axis1=1, axis2=2)
    return bool((diagonal <= _SINGULAR).any())


def refit_weight(
    weight: np.ndarray, inverse_moments: np.ndarray, removed: np.ndarray
) -> np.ndarray:
    """Refit a weight for the kept columns: W - W_S ((G^-1)_SS)^-1 (G^-1)_S.

    Parameters
    ----------
    weight
        (O, K) W.
    inverse_moments
        (K, K) G^-1.
    removed
        Columns S.

    Returns
    -------
    np.ndarray
        (O, K) with zeros in the removed columns; `weight` itself if there are none.
    """
    if not len(removed):
        return weight
    square, right = inverse_moments[np.ix_(removed, removed)], inverse_moments[removed]
    try:
        block = np.linalg.solve(square, right)
    except np.linalg.LinAlgError:
        block = np.linalg.pinv(square, hermitian=True) @ right
    out = weight - weight[:, removed] @ block
    out[:, removed] = 0.0
    return out
