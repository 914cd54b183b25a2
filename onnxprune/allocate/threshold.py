"""One threshold over all groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.allocate.base import Step
from onnxprune.analysis.groups import Analysis


def threshold(analysis: Analysis, steps: Sequence[Step], what: str) -> np.ndarray:
    """Largest score that goes, relative to the mean magnitude of its group's scores.

    Raw scores of different groups do not compare: their scale is that of the layer.
    """
    total: dict[str, list[float]] = {}
    for s in steps:
        entry = total.setdefault(s.group, [0.0, 0.0])
        entry[0] += float(np.abs(s.scores).sum())
        entry[1] += len(s.scores)
    return np.array([s.scores.max() / (total[s.group][0] / total[s.group][1] or 1.0) for s in steps])
