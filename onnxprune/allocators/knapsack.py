"""Least damage per saving, from the scores alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.allocators.base import Ranking, WidthStep
from onnxprune.criteria.base import Context
from onnxprune.types import Scores

_TINY = 1e-12


def knapsack(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> Ranking:
    """Compute damage as log(energy before / energy after).

    Energy is the sum of squared scores of the kept channels. The logarithm is independent of the
    scale of the scores, so that layers can be compared, and grows without bound as a group runs
    empty.
    """
    damage = []
    for step in steps:
        # the damage of an empty group is large, but finite
        least = _TINY * max(step.energy[0], _TINY)
        before, after = (max(energy, least) for energy in step.energy)
        damage.append(np.log(before / after))
    return Ranking(np.array(damage), True)


def layer_error(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> Ranking:
    """Compute damage as the sum of the scores of the removed channels.

    With criterion `reconstruction` this is the divergence that the consumers' errors cause.
    """
    return Ranking(np.array([float(np.maximum(s.scores, 0).sum()) for s in steps]), True)
