"""Random scores, the control for every other criterion."""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.base import Context
from onnxprune.types import Scores


def random(context: Context) -> Scores:
    """Draw uniform random scores with the context's seed."""
    rng = np.random.default_rng(context.seed)
    return {group.name: rng.random(group.size) for group in context.analysis.groups}
