"""Plans as fix_subnet.json of channel-unit pruners: {"module_(start, end)_total": kept}, counts only; and back, with scores to choose the channels by."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.analysis.groups import Analysis
from onnxprune.errors import UsageError, unknown
from onnxprune.search.base import keep_best
from onnxprune.types import Plan, Scores


def unit_names(analysis: Analysis) -> dict[str, str]:
    """Group -> its name in such a file: the node that makes it, its positions there, and how many the node makes."""
    found = {}
    for group in analysis.groups:
        members = analysis.members(group.name)
        lead = next((m for m in members if m.site.role == "produces"), members[0])
        total = analysis.model.weights[lead.site.tensor].shape[lead.site.axis]
        found[group.name] = (
            f"{group.name}_({int(lead.positions.min())}, {int(lead.positions.max()) + 1})_{total}"
        )
    return found


def to_subnet(analysis: Analysis, plan: Plan) -> dict[str, int]:
    """Kept counts of all groups; UsageError where the plan is of another model."""
    analysis.check(plan)
    return {
        unit: len(plan.kept.get(name, range(analysis.group(name).size)))
        for name, unit in unit_names(analysis).items()
    }


def from_subnet(analysis: Analysis, counts: Mapping[str, object], scores: Scores) -> Plan:
    """A plan with these counts, the best channels of each group by the scores.

    Raises
    ------
    UsageError
        A unit that the model does not have, or a count that its group cannot have.
    """
    groups = {unit: name for name, unit in unit_names(analysis).items()}
    kept = {}
    for unit, count in counts.items():
        if unit not in groups:
            raise unknown("unit", unit, groups)
        size = analysis.group(groups[unit]).size
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= size:
            raise UsageError(
                "subnet-count",
                f"unit {unit!r} keeps {count!r}; it has {size} channels: give 1 to {size}",
            )
        if count < size:
            if groups[unit] not in scores:
                raise UsageError(
                    "subnet-scores",
                    f"the criterion gives no scores for {groups[unit]!r}; choose another --criterion",
                )
            kept[groups[unit]] = keep_best(scores[groups[unit]], count)
    return analysis.plan(kept, method="subnet")
