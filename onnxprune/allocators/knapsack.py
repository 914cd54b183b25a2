"""Least damage for what it saves, from the scores alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.allocators.base import Ranking, Step
from onnxprune.criteria.base import Context
from onnxprune.types import Scores

_TINY = 1e-12


def knapsack(context: Context, scores: Scores, steps: Sequence[Step]) -> Ranking:
    """Damage is log(energy before / energy after), energy being the sum of squared scores that is left of a group.

    Scale-free, so that layers compare, and growing without bound as a group runs empty.
    """
    damage = []
    for s in steps:
        before, after = (max(e, _TINY * max(s.energy[0], _TINY)) for e in s.energy)
        damage.append(np.log(before / after))
    return Ranking(np.array(damage), True)


def layer_error(context: Context, scores: Scores, steps: Sequence[Step]) -> Ranking:
    """Damage is the sum of the scores that go: of `reconstruction`, the divergence that the layers reading the group leave."""
    return Ranking(np.array([float(np.maximum(s.scores, 0).sum()) for s in steps]), True)
