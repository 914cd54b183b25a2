"""Which weights stay: by a fraction of each tensor, of each output or of all together, or N of every M input channels.

Scores are higher = keep, one a weight. Ties go by position, so the same weights give the same masks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from onnxprune.errors import UsageError

Rows = Mapping[str, np.ndarray]  # tensor -> (groups, outputs, columns)
SCOPES = ("tensor", "output", "global")


def zeros_wanted(amount: float, count: int) -> int:
    """How many of `count` weights become zero: amount * count rounded half to even, as torch.nn.utils.prune counts."""
    return round(amount * count)


def choose(
    scores: Rows, amount: float, scope: str, taps: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """True where a weight stays.

    Parameters
    ----------
    amount
        Fraction of weights to remove (for N:M the pattern says it).
    scope
        "tensor", "output" (each row by itself), "global", or "N:M" along the input channels (2:4 keeps two of four).
    taps
        Columns of one input channel, for N:M.

    Raises
    ------
    UsageError
        `amount` is not in [0, 1) or `scope` is none.
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
        return {name: _n_of_m(s, n, m, (taps or {}).get(name, 1)) for name, s in scores.items()}
    if scope == "tensor":
        return {
            n: _largest(s.reshape(1, -1), zeros_wanted(amount, s.size)).reshape(s.shape)
            for n, s in scores.items()
        }
    if scope == "output":
        return {
            n: _largest(s.reshape(-1, s.shape[-1]), zeros_wanted(amount, s.shape[-1])).reshape(
                s.shape
            )
            for n, s in scores.items()
        }
    if scope != "global":
        raise UsageError(
            "sparsity-scope",
            f"scope {scope!r} is none of {', '.join(SCOPES)}, and no pattern such as 2:4",
        )
    flat = np.concatenate([s.reshape(-1) for s in scores.values()]) if scores else np.zeros(0)
    kept = _largest(flat[None], zeros_wanted(amount, flat.size))[0]
    parts = np.split(kept, np.cumsum([s.size for s in scores.values()])[:-1]) if scores else []
    return {n: p.reshape(s.shape) for (n, s), p in zip(scores.items(), parts, strict=False)}


def _largest(scores: np.ndarray, remove: int) -> np.ndarray:
    """True but for the `remove` least of each row, of equal ones the first."""
    if not remove:
        return np.ones(scores.shape, bool)
    border = np.partition(scores, remove - 1, axis=1)[:, remove - 1, None]
    below, level = scores < border, scores == border
    return ~(below | (level & (level.cumsum(1) <= remove - below.sum(1, keepdims=True))))


def _n_of_m(scores: np.ndarray, n: int, m: int, taps: int) -> np.ndarray:
    """True for the n best of every m neighboring input channels, each tap by itself; channels beyond the last full m stay."""
    groups, outputs, columns = scores.shape
    by_tap = scores.reshape(groups, outputs, columns // taps, taps).swapaxes(2, 3)
    whole = by_tap.shape[-1] // m * m
    kept = np.ones(by_tap.shape, bool)
    if whole:
        kept[..., :whole] = _largest(by_tap[..., :whole].reshape(-1, m), m - n).reshape(
            *by_tap.shape[:-1], whole
        )
    return kept.swapaxes(2, 3).reshape(scores.shape)
