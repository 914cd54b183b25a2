"""Conversion between plans and `fix_subnet.json` of channel-unit pruners.

Such a file is {"module_(start, end)_total": kept} and holds counts only; the way back needs scores
to choose the channels by.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.analysis.groups import Analysis
from onnxprune.errors import MOST_NEAR, UsageError, plural, unknown
from onnxprune.search.base import keep_best
from onnxprune.types import Plan, Scores


def unit_names(analysis: Analysis) -> dict[str, str]:
    """Return group -> unit name: producer node, its range of positions, and its channel count."""
    names = {}
    for group in analysis.groups:
        members = analysis.members(group.name)
        # units are named by the layer that produces them; some groups have only other members
        lead = next((m for m in members if m.site.role == "produces"), members[0])
        total = analysis.model.weights[lead.site.tensor].shape[lead.site.axis]
        start, end = int(lead.positions.min()), int(lead.positions.max()) + 1
        names[group.name] = f"{group.name}_({start}, {end})_{total}"
    return names


def to_subnet(analysis: Analysis, plan: Plan) -> dict[str, int]:
    """Return unit name -> kept count of all groups; UsageError if the plan is of another model."""
    plan = analysis.check(plan)
    return {
        # a plan names only the groups that it cuts
        unit: len(plan.kept.get(name, range(analysis.group(name).size)))
        for name, unit in unit_names(analysis).items()
    }


def from_subnet(analysis: Analysis, counts: Mapping[str, object], scores: Scores) -> Plan:
    """Return a plan with these kept counts, the channels of each group chosen by the scores.

    Raises
    ------
    UsageError
        The model has no such unit, a count is outside 1 to the group's size, or the scores lack a
        group.
    """
    groups = {unit: name for name, unit in unit_names(analysis).items()}
    kept = {}
    for unit, count in counts.items():
        if unit not in groups:
            raise unknown("unit", unit, groups, most=MOST_NEAR)
        name = groups[unit]
        size = analysis.group(name).size
        # True is an int in Python
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= size:
            raise UsageError(
                "subnet-count",
                f"unit {unit!r} keeps {count!r} of {plural(size, 'channel')}; give 1 to {size}",
            )
        # an unpruned group needs no scores, which some criteria lack
        if count == size:
            continue
        if name not in scores:
            raise UsageError(
                "subnet-scores",
                f"the criterion has no scores for group {name!r}; choose another --criterion",
            )
        kept[name] = keep_best(scores[name], count)
    return analysis.plan(kept, method="subnet")
