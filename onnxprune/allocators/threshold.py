"""One threshold over all groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.allocators.base import Ranking, Step
from onnxprune.criteria.base import Context
from onnxprune.types import Scores


def threshold(context: Context, scores: Scores, steps: Sequence[Step]) -> Ranking:
    """Largest score that goes, relative to the mean magnitude of its group's scores.

    Raw scores of different groups do not compare: their scale is that of the layer.
    """
    means = {name: float(np.abs(values).mean()) or 1.0 for name, values in scores.items()}
    return Ranking(np.array([s.scores.max() / means[s.group] for s in steps]), False)
