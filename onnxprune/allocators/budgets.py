"""Checks of budgets, and the error if they cannot be met."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from onnxprune.allocators.base import Constraints
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.state import KERNEL_POSITION
from onnxprune.errors import TargetError
from onnxprune.ir.nodes import label

# Reason of an axis that a normalization mixes; see `analysis.apply` and `analysis.decomposed`
_MIXING = re.compile(r"(?:decomposed )?(\w+Normalization) mixes along this axis")


def first_missed(
    analysis: Analysis, constraints: Constraints, kept: Mapping[str, Sequence[int]]
) -> str | None:
    """Return the first budget that is exceeded; None if all are met.

    Counted costs come before measured ones, which take time.
    """
    counted = analysis.cost(kept).as_dict()
    for cost in sorted(constraints.budgets, key=lambda c: c in constraints.measures):
        measure = constraints.measures.get(cost)
        value = counted[cost] if measure is None else measure(kept)
        if value > constraints.budgets[cost]:
            return cost
    return None


def unreachable(
    analysis: Analysis, constraints: Constraints, kept: Mapping[str, Sequence[int]], cost: str
) -> TargetError:
    """Return the error for a budget that cannot be met.

    Parameters
    ----------
    kept
        Least kept channels per group.
    cost
        The exceeded budget.
    """
    original, reached = (
        _gather_costs(analysis.original, constraints, {}),
        _gather_costs(analysis, constraints, kept),
    )
    # a candidate may be timed in another type than the original
    unpruned = getattr(constraints.measures.get(cost), "original_ms", original[cost])
    most, total = constraints.budgets[cost], unpruned or 1
    lines = [
        f"target {cost} <= {most / total:.1%} cannot be met: {reached[cost] / total:.1%} is the "
        f"least with floor={constraints.floor}, max_fraction={constraints.max_fraction:g}, "
        f"round_to={constraints.round_to}{_spell_ratios(constraints)}."
    ]
    before, after = analysis.node_costs(), analysis.node_costs(kept)
    fixed = [b for b, a in zip(before, after, strict=True) if a.macs == b.macs]
    # the largest node explains most
    fixed.sort(key=lambda n: -n.macs)
    if fixed:
        macs = max(original["macs"], 1)
        share, largest = sum(n.macs for n in fixed) / macs, fixed[0]
        lines.append(
            f"  {share:.0%} of MACs are in nodes that cannot shrink; largest: {largest.node} "
            f"({_explain_fixed(analysis, largest.node)}, {largest.macs / macs:.0%})."
        )
    lines += [f"  {text}" for text in explain_mixing(analysis)]
    name = fixed[0].node if fixed else "TENSOR"
    advice = "Lower --floor or --round-to, raise --max-fraction"
    if constraints.ratios:
        advice = "Raise --ratio or omit it: it fixes the widths of the groups that it matches"
    lines.append(f"  {advice}, or see: onnxprune inspect MODEL --why {name}")
    return TargetError("target-unreachable", "\n".join(lines))


def explain_mixing(analysis: Analysis) -> list[str]:
    """Return a sentence on the option that opens normalizations, if they freeze channels."""
    # not on Softmax and its kin, whose outputs without a channel have another meaning
    matches = (_MIXING.fullmatch(frozen.reason) for frozen in analysis.frozen)
    ops = sorted({match[1] for match in matches if match})
    if not ops:
        return []
    options = " ".join(f"--allow-mixing {op}" for op in ops)
    return [
        f"{' and '.join(ops)} froze channels; {options} prunes them too, but then the cut is "
        "not exact."
    ]


def _spell_ratios(constraints: Constraints) -> str:
    """Return the ratios as they are given on the command line, "" if there are none."""
    ratios = [f"{glob}={share:g}" for glob, share in constraints.ratios.items()]
    return f", ratio {' '.join(ratios)}" if ratios else ""


def _gather_costs(
    analysis: Analysis, constraints: Constraints, kept: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Return counted and measured costs by name."""
    measured = {cost: measure(kept) for cost, measure in constraints.measures.items()}
    return {**analysis.cost(kept).as_dict(), **measured}


def _explain_fixed(analysis: Analysis, name: str) -> str:
    """Return the reason why a node cannot shrink.

    The limits if one of its axes is prunable; else the reasons of its weights' axes, or those of
    its activations if no weight has any.
    """
    number = next(i for i, n in enumerate(analysis.nodes) if label(n) == name)
    if analysis.prunable(number):
        return "its channels are prunable, but only down to the limits above"
    node = analysis.nodes[number]
    weights = [u.tensor for u in analysis.uses if u.node == number]
    others = [t for t in (*node.input, *node.output) if t and t not in weights]
    for tensors in (weights, others):
        reasons: dict[str, None] = {}  # an ordered set
        for tensor in tensors:
            reasons.update(dict.fromkeys(f.reason for f in analysis.why(tensor)))
        # kernel axes are frozen in every convolution and explain nothing
        reasons.pop(KERNEL_POSITION, None)
        if reasons:
            return ", ".join(list(reasons)[:2])
    return "all its channels are frozen"
