"""Local search after backward elimination: exchange a removed channel for a kept one.

Elimination never undoes a removal, and its order serves all widths at once; at the chosen width
another set of channels may have a smaller error. A swap is made as long as the consumers' error
decreases.

With g = G^-1, p = W'W, removed columns S and A = (g_SS)^-1, the error after a refit is tr(p_SS A).
The change for every pair of a channel j in S and a kept channel c follows from block inverses.
Without j, the columns of c have

    g_cc + x' A_jj^-1 x  with  x = (A g_Sc)_j,
    W_c + v x            with  v = W_S A_Sj A_jj^-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxprune.criteria.base import Context
from onnxprune.criteria.elimination import Consumer, inverse, invert_blocks
from onnxprune.criteria.reconstruction import group_consumers, moments
from onnxprune.types import Plan

MIN_GAIN = 1e-4  # of a group's error; a swap that gains less is not made


def swapped(context: Context, plan: Plan, most: int) -> Plan:
    """Return the plan after at most `most` swaps per group; widths do not change."""
    statistics, kept = moments(context), dict(plan.kept)
    for i, (group, channels) in enumerate(plan.kept.items()):
        context.progress(i / len(plan.kept), f"{i} of {len(plan.kept)} groups")
        consumers = group_consumers(context.analysis, group, *statistics)
        if not consumers or not channels:
            continue
        size = plan.sizes[group]
        removed = np.setdiff1d(np.arange(size), channels)
        removed, _ = swap(consumers, size, removed, most)
        kept[group] = tuple(np.setdiff1d(np.arange(size), removed).tolist())
    return replace(plan, kept=kept)


def swap(
    consumers: Sequence[Consumer], size: int, removed: np.ndarray, most: int
) -> tuple[np.ndarray, list[float]]:
    """Swap channels of one group, the best pair first.

    Parameters
    ----------
    size
        Number of channels.
    removed
        Channels that are removed at first.
    most
        Largest number of swaps.

    Returns
    -------
    removed
        Channels that are removed in the end, sorted.
    errors
        Summed error of the consumers at first and after each swap.
    """
    removed = np.sort(np.asarray(removed))
    work, errors = [(c, inverse(c.moments)) for c in consumers], []
    for _ in range(most + 1):
        kept = np.setdiff1d(np.arange(size), removed)
        if not work or not len(removed) or not len(kept):
            errors.append(0.0)
            break
        error, change = 0.0, np.zeros((1, 1))
        for consumer, g in work:
            own_error, own_change = _evaluate_swaps(consumer, g, removed, kept)
            error += consumer.scale * own_error
            change = change + consumer.scale * own_change
        errors.append(float(error))
        j, c = np.unravel_index(int(np.argmin(change)), change.shape)
        if len(errors) > most or change[j, c] > -MIN_GAIN * error:
            break
        removed = np.sort(np.append(np.delete(removed, j), kept[c]))
    return removed, errors


def _evaluate_swaps(
    consumer: Consumer, g: np.ndarray, removed: np.ndarray, kept: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return the error of one consumer, and its change by each swap.

    Parameters
    ----------
    g
        Inverse of the consumer's second moments.

    Returns
    -------
    error
        tr(p_SS A) with the channels in `removed` removed.
    change
        (removed, kept): increase of the error if the pair is swapped.
    """
    p, m = consumer.weight, consumer.index.shape[1]
    s, c = consumer.index[removed].ravel(), consumer.index[kept].ravel()
    a = np.linalg.pinv(g[np.ix_(s, s)], hermitian=True)
    x = a @ g[np.ix_(s, c)]
    p_ss = p[np.ix_(s, s)]
    ap = a @ p_ss
    apa = _take_diagonal_blocks(ap @ a, m)
    left = p[np.ix_(c, s)] - x.T @ p_ss  # W_c' W_S of the kept columns, refitted
    g_c = _take_diagonal_blocks(g[np.ix_(c, c)] - g[np.ix_(c, s)] @ x, m)
    p_c = _take_diagonal_blocks(p[np.ix_(c, c)] - left @ x - x.T @ p[np.ix_(s, c)], m)
    a_jj_inv = invert_blocks(_take_diagonal_blocks(a, m))
    # from here on (removed, kept, m, m): one block per pair
    x = x.reshape(len(removed), m, len(kept), m).transpose(0, 2, 1, 3)
    la = (left @ a).reshape(len(kept), m, len(removed), m).transpose(2, 0, 1, 3)
    cross = la @ a_jj_inv[:, None]  # W_c' v
    v_v = a_jj_inv @ apa @ a_jj_inv  # v' v
    x_t = x.swapaxes(2, 3)
    g_pair = g_c + x_t @ a_jj_inv[:, None] @ x
    p_pair = p_c + cross @ x + (cross @ x).swapaxes(2, 3) + x_t @ v_v[:, None] @ x
    # cost of removing c once j is restored, minus the error that restoring j saves
    added = np.einsum("jcab,jcba->jc", invert_blocks(g_pair), p_pair)
    restored = np.einsum("jab,jba->j", a_jj_inv, apa)
    return float(np.trace(ap)), added - restored[:, None]


def _take_diagonal_blocks(matrix: np.ndarray, m: int) -> np.ndarray:
    """Return the blocks of m x m on the diagonal, (n, m, m)."""
    n = len(matrix) // m
    return matrix.reshape(n, m, n, m)[np.arange(n), :, np.arange(n)]
