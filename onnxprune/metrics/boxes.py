"""Box overlap and non-maximum suppression.

A detection is a row x1, y1, x2, y2, score, class with corners as fractions of the image.
"""

from __future__ import annotations

import numpy as np

COLUMNS = 6


def overlap(a: np.ndarray, b: np.ndarray, *, of_first: bool = False) -> np.ndarray:
    """Return the intersection over union of boxes (n, 4+) and (m, 4+), float64 (n, m).

    With `of_first`, the intersection over the area of `a`.
    """
    a, b = a[:, None, :4].astype(np.float64), b[None, :, :4].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.clip(sides, 0, None).prod(-1)
    total = (a[..., 2:] - a[..., :2]).prod(-1)
    if not of_first:
        total = total + (b[..., 2:] - b[..., :2]).prod(-1) - common
    # boxes without an area overlap with nothing
    return np.asarray(np.divide(common, total, out=np.zeros_like(common), where=total > 0))


def suppress(detections: np.ndarray, limit: float, most: int | None = None) -> np.ndarray:
    """Apply non-maximum suppression within each class.

    Parameters
    ----------
    detections
        Rows (n, 6).
    limit
        A row is dropped if its IoU with a kept row of its class and a higher score exceeds this.
    most
        Maximum number of rows to return; None = all.

    Returns
    -------
    ndarray
        The kept rows, the highest score first. Cost: one row of overlaps per kept row.
    """
    # stable: equal scores keep the order of the model
    left = detections[np.argsort(-detections[:, 4], kind="stable")]
    kept: list[np.ndarray] = []
    while len(left) and (most is None or len(kept) < most):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[(left[:, 5] != best[5]) | (overlap(best[None], left)[0] <= limit)]
    return np.stack(kept) if kept else np.zeros((0, COLUMNS))


def center_to_corner(boxes: np.ndarray) -> np.ndarray:
    """Return corners (n, 4) of boxes given as center x, center y, width, height."""
    half = boxes[:, 2:4] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)
