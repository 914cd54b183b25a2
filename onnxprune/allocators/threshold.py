"""One threshold over all groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.allocators.base import Ranking, WidthStep
from onnxprune.criteria.base import Context
from onnxprune.types import Scores


def threshold(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> Ranking:
    """Rank by the largest removed score over the mean absolute score of its group.

    Raw scores of different groups cannot be compared: they have the scale of their layer.
    """
    means = {name: float(np.abs(values).mean()) or 1.0 for name, values in scores.items()}
    return Ranking(np.array([s.scores.max() / means[s.group] for s in steps]), False)
