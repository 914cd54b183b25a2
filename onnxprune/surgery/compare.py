"""Differences between outputs of two models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.ir.outputs import as_array

_BLOCK = 1 << 20  # values of an output that are compared at a time

Outputs = Mapping[str, Any]


def relative_difference(actual: Any, expected: Any) -> float:
    """Return the largest absolute difference over the largest absolute expected value.

    Returns
    -------
    difference
        Infinite if shapes, types or non-finite values differ.
    """
    a, b = as_array(actual), as_array(expected)
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    # strings and complex numbers are equal or not
    if a.dtype.kind not in "fiub" and a.dtype.name != "bfloat16":
        return 0.0 if np.array_equal(a, b) else float("inf")
    scale = worst = 0.0
    flat_a, flat_b = a.ravel(), b.ravel()
    # in blocks: float64 copies of a large output would take several times its memory
    for at in range(0, a.size, _BLOCK):
        x = flat_a[at : at + _BLOCK].astype(np.float64)
        y = flat_b[at : at + _BLOCK].astype(np.float64)
        finite = np.isfinite(y)
        # infinities and NaN must be at the same places, and of the same kind
        if not np.array_equal(np.isfinite(x), finite):
            return float("inf")
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
            return float("inf")
        scale = max(scale, float(np.abs(y[finite]).max(initial=0.0)))
        worst = max(worst, float(np.abs(x[finite] - y[finite]).max(initial=0.0)))
    if scale:
        return worst / scale
    # an output of zeros has no scale: any difference from it counts as a failure
    return float("inf") if worst else 0.0
