"""Masks from scores: a fraction of each tensor, each output or all tensors, or N of M channels.

Scores are higher = keep, one per weight. Ties are broken by position, so that equal scores give
equal masks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from onnxprune.errors import UsageError

Rows = Mapping[str, np.ndarray]  # tensor -> (groups, outputs, columns)
SCOPES = ("tensor", "output", "global")


def count_zeros(amount: float, count: int) -> int:
    """Return how many of `count` weights become zero.

    amount * count, rounded half to even as torch.nn.utils.prune does.
    """
    return round(amount * count)


def choose(
    scores: Rows, amount: float, scope: str, taps: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Return masks, True = kept, in the shapes of the scores.

    Parameters
    ----------
    amount
        Fraction of weights to remove; a pattern N:M ignores it.
    scope
        "tensor", "output" (each row by itself), "global", or "N:M" along the input channels (2:4
        keeps two of four).
    taps
        Columns per input channel by tensor, for N:M.

    Raises
    ------
    UsageError
        `amount` is not in [0, 1) or `scope` does not exist.
    """
    if not 0 <= amount < 1:
        raise UsageError(
            "sparsity-amount",
            f"amount is the fraction of weights to remove, 0 <= amount < 1, not {amount}",
        )
    if pattern := re.fullmatch(r"(\d+):(\d+)", scope):
        n, m = int(pattern[1]), int(pattern[2])
        if not 0 < n < m:
            raise UsageError(
                "sparsity-pattern",
                f"pattern {scope} keeps {n} of {m}; it must keep some and remove some, as 2:4 does",
            )
        return {
            name: _keep_n_of_m(s, n, m, (taps or {}).get(name, 1)) for name, s in scores.items()
        }
    if scope == "tensor":
        return {name: _keep_largest(s, s.size, amount) for name, s in scores.items()}
    if scope == "output":
        return {name: _keep_largest(s, s.shape[-1], amount) for name, s in scores.items()}
    if scope != "global":
        raise UsageError(
            "sparsity-scope",
            f"scope {scope!r} is none of {', '.join(SCOPES)}, and no pattern such as 2:4",
        )
    return _choose_globally(scores, amount)


def _choose_globally(scores: Rows, amount: float) -> dict[str, np.ndarray]:
    """Remove the lowest scores of all tensors together."""
    if not scores:
        return {}
    flat = np.concatenate([s.reshape(-1) for s in scores.values()])
    kept = _keep_largest(flat, flat.size, amount)
    parts = np.split(kept, np.cumsum([s.size for s in scores.values()])[:-1])
    return {
        name: part.reshape(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)
    }


def _keep_largest(scores: np.ndarray, width: int, amount: float) -> np.ndarray:
    """Remove the fraction `amount` of every `width` consecutive scores."""
    if not scores.size:
        return np.ones(scores.shape, bool)
    rows = scores.reshape(-1, width)
    return _drop_smallest(rows, count_zeros(amount, width)).reshape(scores.shape)


def _drop_smallest(scores: np.ndarray, remove: int) -> np.ndarray:
    """Return False for the `remove` smallest of each row; of equal ones the first."""
    if not remove:
        return np.ones(scores.shape, bool)
    # a partition finds the border without sorting all scores
    border = np.partition(scores, remove - 1, axis=1)[:, remove - 1, None]
    below, level = scores < border, scores == border
    # what is below the border is removed; the rest of `remove` is filled by equal scores in order
    missing = remove - below.sum(1, keepdims=True)
    return ~(below | (level & (level.cumsum(1) <= missing)))


def _keep_n_of_m(scores: np.ndarray, n: int, m: int, taps: int) -> np.ndarray:
    """Keep the n best of every m neighboring input channels, each tap by itself.

    Channels after the last full m are kept.
    """
    groups, outputs, columns = scores.shape
    # channels innermost, so that m neighbors of one tap are consecutive
    by_tap = scores.reshape(groups, outputs, columns // taps, taps).swapaxes(2, 3)
    full = by_tap.shape[-1] // m * m
    kept = np.ones(by_tap.shape, bool)
    if full:
        blocks = _drop_smallest(by_tap[..., :full].reshape(-1, m), m - n)
        kept[..., :full] = blocks.reshape(*by_tap.shape[:-1], full)
    return kept.swapaxes(2, 3).reshape(scores.shape)
