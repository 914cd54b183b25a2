"""Local search behind backward elimination: a channel that went comes back for one that stays, while the readers' error shrinks.

Elimination never takes back what it did, and its order serves all widths at once; at the width that was chosen other channels may be better. With
g = G^-1, p = W' W, S the columns that go and A = (g_SS)^-1, the error after a refit is tr (p_SS A). What each pair of a channel j of S and one c that
stays changes follows from blocks: without j the columns of c have g_cc + x' A_jj^-1 x, x = (A g_Sc)_j, and W_c + v x, v = W_S A_Sj A_jj^-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxprune.criteria.base import Context
from onnxprune.criteria.elimination import Reader, inverse
from onnxprune.criteria.reconstruction import group_readers, moments
from onnxprune.types import Plan

LEAST = 1e-4  # of a group's error; a swap that gains less is none


def swapped(context: Context, plan: Plan, most: int) -> Plan:
    """The plan with at most so many swaps a group; as many channels stay."""
    known, kept = moments(context), dict(plan.kept)
    for i, (group, stay) in enumerate(plan.kept.items()):
        context.progress(i / len(plan.kept), f"{i} of {len(plan.kept)} groups")
        readers = group_readers(context.analysis, group, *known)
        if readers and stay:
            gone = np.setdiff1d(np.arange(plan.sizes[group]), stay)
            kept[group] = tuple(
                np.setdiff1d(
                    np.arange(plan.sizes[group]), swap(readers, plan.sizes[group], gone, most)[0]
                ).tolist()
            )
    return replace(plan, kept=kept)


def swap(
    readers: Sequence[Reader], size: int, gone: np.ndarray, most: int
) -> tuple[np.ndarray, list[float]]:
    """(channels that go, their error at first and after each swap).

    Parameters
    ----------
    gone
        Channels that go, of `size`; at least one stays.
    """
    gone = np.sort(np.asarray(gone))
    work, errors = [(r, inverse(r.moments)) for r in readers], []
    for _ in range(most + 1):
        stay = np.setdiff1d(np.arange(size), gone)
        found = [_changes(r, g, gone, stay) for r, g in work] if len(gone) and len(stay) else []
        errors.append(float(sum(r.scale * e for (r, _), (e, _) in zip(work, found, strict=False))))
        change = sum(
            (r.scale * d for (r, _), (_, d) in zip(work, found, strict=False)), np.zeros((1, 1))
        )
        j, c = np.unravel_index(int(np.argmin(change)), change.shape)
        if not found or len(errors) > most or change[j, c] > -LEAST * errors[-1]:
            break
        gone = np.sort(np.append(np.delete(gone, j), stay[c]))
    return gone, errors


def _changes(
    reader: Reader, g: np.ndarray, gone: np.ndarray, stay: np.ndarray
) -> tuple[float, np.ndarray]:
    """(error with `gone` gone, what each swap adds to it (gone, stay)); g: inverse of the second moments."""
    p, m = reader.weight, reader.index.shape[1]
    s, c = reader.index[gone].ravel(), reader.index[stay].ravel()
    a = np.linalg.pinv(g[np.ix_(s, s)], hermitian=True)
    x = a @ g[np.ix_(s, c)]
    pss = p[np.ix_(s, s)]
    ap = a @ pss
    apa = _own(ap @ a, m)
    left = p[np.ix_(c, s)] - x.T @ pss  # W_c' W_S of the columns that stay, refitted
    g_c = _own(g[np.ix_(c, c)] - g[np.ix_(c, s)] @ x, m)
    p_c = _own(p[np.ix_(c, c)] - left @ x - x.T @ p[np.ix_(s, c)], m)
    back = np.linalg.inv(_own(a, m))  # A_jj^-1
    x = x.reshape(len(gone), m, len(stay), m).transpose(0, 2, 1, 3)  # a block each pair
    through = (left @ a).reshape(len(stay), m, len(gone), m).transpose(2, 0, 1, 3) @ back[
        :, None
    ]  # W_c' v
    own = back @ apa @ back  # v' v
    turned = x.swapaxes(2, 3)
    g_pair = g_c + turned @ back[:, None] @ x
    p_pair = p_c + through @ x + (through @ x).swapaxes(2, 3) + turned @ own[:, None] @ x
    added = np.einsum("jcab,jcba->jc", np.linalg.inv(g_pair), p_pair)
    restored = np.einsum("jab,jba->j", back, apa)
    return float(np.trace(ap)), added - restored[:, None]


def _own(matrix: np.ndarray, m: int) -> np.ndarray:
    """Blocks of m x m on the diagonal, (n, m, m)."""
    n = len(matrix) // m
    return matrix.reshape(n, m, n, m)[np.arange(n), :, np.arange(n)]
