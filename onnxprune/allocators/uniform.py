"""The same share of every group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.allocators.base import Ranking, WidthStep
from onnxprune.criteria.base import Context
from onnxprune.types import Scores


def uniform(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> Ranking:
    """Rank by the share of the group that is removed after the step."""
    return Ranking(np.array([1 - s.target / s.size for s in steps]), False)
