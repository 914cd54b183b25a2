"""Least damage for what it saves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.allocate.base import Step
from onnxprune.analysis.groups import Analysis

_TINY = 1e-12


def knapsack(analysis: Analysis, steps: Sequence[Step], what: str) -> np.ndarray:
    """Damage of the step over its first-order saving.

    Damage is log(energy before / energy after), energy being the sum of squared scores that is left of a group: scale-free, so
    that layers compare, and growing without bound as a group runs empty.
    """
    savings = {name: float(v.sum()) for name, v in analysis.savings(what).items()}
    total = sum(savings.values()) or 1.0
    keys = []
    for s in steps:
        before, after = (max(e, _TINY * max(s.energy[0], 1.0)) for e in s.energy)
        saving = savings[s.group] / total * (s.width - s.target) / s.size
        keys.append(np.log(before / after) / max(saving, _TINY))
    return np.array(keys)
