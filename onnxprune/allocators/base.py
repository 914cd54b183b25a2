"""Contract of an allocator: constraints on a plan, steps between widths, and their ranking."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.criteria.base import Context
from onnxprune.moved import old_names
from onnxprune.types import Scores

if not TYPE_CHECKING:
    __getattr__ = old_names(
        __name__,
        {
            "Step": "WidthStep",
            "allocate": "onnxprune.allocators.allocate:allocate",
            "first_missed": "onnxprune.allocators.budgets:first_missed",
            "fixed_widths": "onnxprune.allocators.steps:fixed_widths",
            "unreachable": "onnxprune.allocators.budgets:unreachable",
        },
    )

# kept channels by group (the empty mapping stands for the original) -> cost
Measure = Callable[[Mapping[str, Sequence[int]]], float]


@dataclass(frozen=True)
class Constraints:
    """Conditions that a plan must meet.

    Attributes
    ----------
    budgets
        Cost ("macs", "params", "bytes", "activation_bytes", or one of `measures`) -> most that may
        remain.
    round_to
        Kept counts are multiples of it.
    half_block
        Also allow round_to / 2, for engines that compute in blocks of `round_to`.
    floor
        Least number of kept channels per group.
    max_fraction
        Largest share of a group that may be removed.
    ratios
        Glob over group names -> share that is removed, fixed.
    ratio_multiple
        Kept counts of groups with a ratio are multiples of it; None = as `round_to` says.
    measures
        Further costs by name, such as a measured latency.
    dead
        Group -> channels that are removed in any case.
    savings
        Group -> cost of all its channels in the unit of the budget; empty = as counted.
    blocks
        Allow removing whole branches, regardless of `max_fraction` and `round_to`.
    """

    budgets: Mapping[str, float] = field(default_factory=dict)
    round_to: int = 1
    half_block: bool = False
    floor: int = 1
    max_fraction: float = 0.9
    ratios: Mapping[str, float] = field(default_factory=dict)
    ratio_multiple: int | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)
    dead: Mapping[str, np.ndarray] = field(default_factory=dict)
    savings: Mapping[str, float] = field(default_factory=dict)
    blocks: bool = False

    @property
    def measured(self) -> bool:
        """True if a budget is on a measured cost, which takes time."""
        return not self.budgets.keys().isdisjoint(self.measures)


@dataclass(frozen=True)
class WidthStep:
    """Reduction of a group from one allowed width to the next.

    Attributes
    ----------
    group
        Name of the group.
    size
        Channels of the unpruned group.
    width, target
        Kept channels before and after the step; target 0 removes the group's branch.
    scores
        (width - target,) scores of the removed channels, ascending.
    energy
        Sum of squared scores of the kept channels, before and after.
    """

    group: str
    size: int
    width: int
    target: int
    scores: np.ndarray
    energy: tuple[float, float]


@dataclass(frozen=True)
class Ranking:
    """Result of an allocator.

    Attributes
    ----------
    values
        (steps,) value per step; steps of low value are taken first.
    per_saving
        True if values are damage, to be divided by what the step saves.
    """

    values: np.ndarray
    per_saving: bool


Allocator = Callable[[Context, Scores, Sequence[WidthStep]], Ranking]


def widths(size: int, constraints: Constraints, *, max_fraction: float | None = None) -> list[int]:
    """Return the numbers of kept channels that a group may have, descending from all of them.

    Parameters
    ----------
    max_fraction
        Replaces that of the constraints.
    """
    fraction = constraints.max_fraction if max_fraction is None else max_fraction
    # 1e-9: size * fraction may fall just below the integer that was meant
    least = max(constraints.floor, size - int(np.floor(size * fraction + 1e-9)), 1)
    block = constraints.round_to
    allowed = [size]
    for width in range(size - 1, least - 1, -1):
        if width % block == 0 or constraints.half_block and 2 * width == block:
            allowed.append(width)
    return allowed


def digest_inputs(scores: Scores, steps: Sequence[WidthStep]) -> str:
    """Return a hash of scores and steps."""
    inputs = hashlib.sha256(repr([(s.group, s.width, s.target) for s in steps]).encode())
    # sorted, as the order of the mapping does not matter
    for group in sorted(scores):
        inputs.update(np.ascontiguousarray(scores[group], np.float64).tobytes())
    return inputs.hexdigest()


def ordered(scores: np.ndarray) -> np.ndarray:
    """Return channels from the least to the most important.

    Of equal scores, later channels come first, so that they are removed first.
    """
    # the last key of lexsort is the first to sort by
    return np.lexsort((-np.arange(len(scores)), scores))
