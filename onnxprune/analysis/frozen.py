"""Axes that cannot be cut, with their reasons, and causes whose cut is not exact."""

from __future__ import annotations

import numpy as np

from onnxprune.analysis.cost import Axes
from onnxprune.analysis.state import Record
from onnxprune.types import Frozen


def mixed_causes(record: Record, axes: Axes) -> np.ndarray:
    """Return the causes along which an operator mixes that `allow_mixing` opened.

    Returns
    -------
    mixed : (number of causes + 1,) bool array
    """
    flags = np.zeros(axes.causes + 1, bool)
    for ids in record.mixed:
        flags[axes.table(ids).ravel()] = True
    # the padding of the tables stands for frozen positions, which are never mixed
    flags[-1] = False
    return flags


def frozen_axis(record: Record, tensor: str, axis: int, number: int) -> Frozen:
    """Return a frozen axis with the reason of a number."""
    reason = record.why(number)
    return Frozen(tensor, axis, reason.op, reason.node or reason.tensor, reason.text)
