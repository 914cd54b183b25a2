"""Steps between the allowed widths of each group."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from onnxprune.allocators.base import Constraints, WidthStep, ordered, widths
from onnxprune.analysis.group_names import former_names
from onnxprune.analysis.groups import Analysis
from onnxprune.errors import UsageError
from onnxprune.types import Group, Scores


def build_steps(
    analysis: Analysis,
    scores: Scores,
    constraints: Constraints,
    fixed: Collection[str],
    branches: Collection[str],
) -> tuple[list[WidthStep], dict[str, np.ndarray]]:
    """Build the steps of all scored groups.

    Parameters
    ----------
    fixed
        Groups whose width is given; they have no steps.
    branches
        Groups whose last step removes their branch.

    Returns
    -------
    steps
        In graph order, the steps of a group from wide to narrow.
    order
        Group -> channels in the order of removal, dead ones first.

    Raises
    ------
    UsageError
        A score is NaN or infinite.
    """
    steps: list[WidthStep] = []
    order = {}
    for group in analysis.groups:
        if group.name not in scores:
            continue
        values = np.asarray(scores[group.name], np.float64)
        if not np.isfinite(values).all():
            raise UsageError(
                "scores-not-finite",
                f"scores of group {group.name!r} are not finite; do the data or the weights hold "
                "NaN or infinity?",
            )
        dead = np.asarray(constraints.dead.get(group.name, ()), np.int64)
        rest = ordered(values)
        # dead channels are removed before any step: none of them may be kept for a live one
        order[group.name] = np.concatenate([dead, rest[~np.isin(rest, dead)]])
        if group.name not in fixed:
            start = group.size - len(dead)
            chain = [start, *(w for w in widths(group.size, constraints) if w < start)]
            if group.name in branches:
                # `widths` ends above 0: only a branch can be removed altogether
                chain.append(0)
            steps += _list_group_steps(group, values[order[group.name]], chain)
    return steps, order


def _list_group_steps(group: Group, ranked: np.ndarray, chain: list[int]) -> list[WidthStep]:
    """Return the steps of one group.

    Parameters
    ----------
    ranked
        Scores in the order of removal.
    chain
        Widths, descending.
    """
    # energies[i]: sum of squared scores after the first i removals
    energies = np.concatenate([np.cumsum((ranked**2)[::-1])[::-1], [0.0]])
    steps = []
    for width, target in zip(chain, chain[1:], strict=False):
        first, last = group.size - width, group.size - target
        energy = (float(energies[first]), float(energies[last]))
        steps.append(WidthStep(group.name, group.size, width, target, ranked[first:last], energy))
    return steps


def fixed_widths(analysis: Analysis, scores: Scores, constraints: Constraints) -> Mapping[str, int]:
    """Return the widths of the groups that the recipe's ratios match.

    Groups without scores keep all their channels.

    Raises
    ------
    UsageError
        A pattern matches no group.
    """
    rounding = constraints
    # the automatic multiple of an engine does not apply to explicit ratios
    if constraints.ratio_multiple is not None:
        rounding = replace(constraints, round_to=constraints.ratio_multiple, half_block=False)
    result: dict[str, int] = {}
    for name, ratio in asked_ratios(analysis, constraints.ratios).items():
        size = analysis.group(name).size
        result[name] = size
        if name in scores:
            # a ratio that the recipe gives may exceed the general limit
            chain = widths(size, rounding, max_fraction=1.0)
            result[name] = _choose_nearest(chain, size - ratio * size)
    return result


def asked_ratios(analysis: Analysis, ratios: Mapping[str, float]) -> dict[str, float]:
    """Return group -> share to remove; the last pattern that matches a group counts.

    Raises
    ------
    UsageError
        A pattern matches no group.
    """
    result: dict[str, float] = {}
    for pattern, ratio in ratios.items():
        matches = _match_groups(analysis, pattern)
        if not matches:
            raise UsageError(
                "ratio-unmatched",
                f"ratio pattern {pattern!r} matches no group; see: onnxprune inspect MODEL",
            )
        result.update(dict.fromkeys(matches, ratio))
    return result


def _match_groups(analysis: Analysis, pattern: str) -> list[str]:
    """Return the names of the groups that a pattern, or a number as in "#2", stands for."""
    groups = analysis.groups
    matches = [
        group.name
        for i, group in enumerate(groups)
        if fnmatchcase(group.name, pattern) or pattern == f"#{i}"
    ]
    former = former_names(groups, analysis.model.weights)
    return matches or [group.name for name, group in former.items() if fnmatchcase(name, pattern)]


def _choose_nearest(chain: list[int], exact: float) -> int:
    """Return the width nearest to an exact one; the larger of two."""
    return min(chain, key=lambda width: (abs(width - exact), -width))
