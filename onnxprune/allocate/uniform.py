"""The same share of every group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.allocate.base import Step
from onnxprune.analysis.groups import Analysis


def uniform(analysis: Analysis, steps: Sequence[Step], what: str) -> np.ndarray:
    """Share of the group that is gone after the step."""
    return np.array([1 - s.target / s.size for s in steps])
