"""Search for the smallest model within a tolerance on the divergence of its outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from onnxprune.errors import TargetError, plural
from onnxprune.ir.quantize import is_quantized
from onnxprune.metrics.base import plain
from onnxprune.report.data import BisectionStep, BisectionSummary, TargetRow
from onnxprune.run.adapter import channel_multiple, follows_engine
from onnxprune.run.evaluation import compare_outputs
from onnxprune.run.quantization import exclude_within, quantize_candidate
from onnxprune.run.quantize_options import INT8
from onnxprune.run.recipe import Recipe
from onnxprune.run.results import Decision
from onnxprune.run.variants import Variants, dependencies, or_infinite, plan_key

CLOSE = 0.98  # share of the tolerance at which the search ends
INT8_SHARE = 0.7  # of the tolerance that int8 alone may take; errors add in quadrature
UNREACHABLE = "target-unreachable"  # code of the error of a search without result
PARTS = 100  # positions from the original (0) to the targets, or to nothing (PARTS)

Row = dict[str, Any]  # what was measured at one position, as JSON


def bisect_tolerance(variants: Variants, recipe: Recipe) -> tuple[Recipe, BisectionSummary]:
    """Return the recipe with the targets that keep its `max_divergence`, and the search.

    The smallest model is bisected for, between the original and the recipe's targets (nothing, if
    it has none), to one position or to CLOSE. The logarithm of the divergence is interpolated,
    which takes few steps. If the recipe quantizes, candidates are quantized before they are
    compared, and nodes that are too sensitive for int8 are excluded first. If no cut to the default
    multiple keeps the tolerance, all widths are allowed.

    Raises
    ------
    TargetError
        No channel can be removed.
    """
    recipe = _exclude_sensitive(variants, recipe, recipe.max_divergence or 0.0)
    rows: list[Row] = []
    try:
        return _bisect(variants, recipe, rows)
    except TargetError as problem:
        # nobody asked for the default multiple, which may be a large share of narrow groups
        if problem.code != UNREACHABLE or recipe.round_to is not None or follows_engine(recipe):
            raise
        variants.stages.note(
            f"no cut to widths that are multiples of {channel_multiple(recipe)} keeps "
            f"max_divergence {recipe.max_divergence:g}: searching among all widths"
        )
    return _bisect(variants, recipe.but({"round_to": 1}), rows)


def _bisect(
    variants: Variants, recipe: Recipe, measured: list[Row]
) -> tuple[Recipe, BisectionSummary]:
    """Return the recipe with the targets that keep its `max_divergence`, and the search.

    Parameters
    ----------
    measured
        Rows of an earlier search, which are numbered first; those of this one are appended.
    """
    allowed = recipe.max_divergence or 0.0
    rows: dict[int, Row] = {}

    def passes(position: int) -> bool:
        rows[position] = _measure(variants, recipe, position, measured)
        measured.append(rows[position])
        return _read_divergence(rows[position]) <= allowed

    low, high = 0, PARTS
    # the targets first: if they are within the tolerance, there is nothing to search
    if recipe.target and passes(PARTS):
        low = PARTS
    moves: list[bool] = []  # whether each step raised the lower bound
    # the lower bound passes or is the original, so its model is the result
    while high - low > 1 and not (low and _read_divergence(rows[low]) >= CLOSE * allowed):
        position = _interpolate(rows, low, high, allowed)
        # interpolation can creep up from one side: after two moves of a kind, bisect
        if moves[-2:] in ([True] * 2, [False] * 2):
            position = (low + high) // 2
        moves.append(passes(position))
        low, high = (position, high) if moves[-1] else (low, position)
    if (not low and not passes(0)) or not rows[low]["cut"]:
        raise _explain_unreachable(list(rows.values()), recipe)
    steps = [
        BisectionStep(row["target"], row["macs"], row["divergence"])
        for row in rows.values()
        if row["macs"] is not None
    ]
    selection = variants.splits.selection
    summary = BisectionSummary(
        allowed,
        rows[low]["divergence"],
        selection.samples if selection else 0,
        sorted(steps, key=lambda step: step.macs),
    )
    return recipe.but({"target": rows[low]["target"]}), summary


def _exclude_sensitive(variants: Variants, recipe: Recipe, allowed: float) -> Recipe:
    """Return the recipe with the nodes excluded that take too much of the tolerance in int8."""
    if recipe.quantize != INT8 or is_quantized(variants.source):
        return recipe

    def work() -> Mapping[str, Any]:
        patterns = exclude_within(
            variants.source,
            recipe,
            variants.splits,
            INT8_SHARE * allowed,
            variants.stages.progress,
        )
        more = len(patterns) - len(recipe.quantize_exclude)
        variants.stages.detail(f"{plural(more, 'node')} more than asked for in float32")
        return {"patterns": patterns}

    depends = {**recipe.plain("quantize"), "limit": INT8_SHARE * allowed}
    patterns = variants.do("sensitivity to int8", work, depends)["patterns"]
    return recipe.but({"quantize_exclude": patterns})


def _measure(variants: Variants, recipe: Recipe, position: int, earlier: list[Row]) -> Row:
    """Measure the model at a position; the divergence of a plan is measured once."""
    original = variants.context.analysis.original.cost().as_dict()
    variant = recipe.but({"target": _interpolate_targets(recipe, position, original)})
    targets = [str(target) for target in variant.target]
    title = ", ".join(targets)

    def work() -> Mapping[str, Any]:
        row: Row = {"target": targets, "macs": None, "divergence": None, "cut": True, "plan": ""}
        try:
            plan = variants.plan(variant)
        # without a divergence the position fails, which moves the search toward the original
        except TargetError:
            variants.stages.detail(f"{title} is not reachable")
            return row
        name = plan_key(variant, plan)
        row |= {"macs": variants.macs_share(plan), "cut": bool(plan.kept), "plan": name}
        # neighboring positions may round to the same widths
        known = [other["divergence"] for other in earlier if other["plan"] == name]
        if known:
            row["divergence"] = known[0]
        else:
            selection = variants.splits.selection
            assert selection is not None  # the split fails without
            model = variants.repair(variant, plan)
            model = quantize_candidate(variants.source, model, variant, variants.splits)
            fidelity = compare_outputs(variants.source, model, selection, variant)
            if not fidelity.outputs and fidelity.box_agreement is None:
                raise TargetError(
                    "divergence-none",
                    f"max_divergence {recipe.max_divergence:g}: the model has no output to "
                    "compare; give --target instead",
                )
            row["divergence"] = plain(fidelity.divergence)
        variants.stages.detail(f"{title}: divergence {_read_divergence(row):.3g}")
        return row

    depends = {**dependencies(variant, "decoder"), **variant.plain("quantize")}
    return variants.do(f"bisect {len(earlier) + 1}", work, depends)


def _interpolate_targets(recipe: Recipe, position: int, original: Mapping[str, int]) -> list[str]:
    """Return the targets at a position between the original and the recipe's."""
    if position == PARTS:
        return [str(target) for target in recipe.target]
    limits = {}
    for target in recipe.target:
        cost = original[target.cost]
        # an absolute target may exceed the original's cost
        limits[target.cost] = min(target.ceiling(cost) / max(cost, 1), 1.0)
    share = position / PARTS
    return [
        f"{cost}={100 * (1 - share * (1 - limit)):.6g}%"
        for cost, limit in (limits or {"macs": 0.0}).items()
    ]


def _interpolate(rows: Mapping[int, Row], low: int, high: int, allowed: float) -> int:
    """Return the position at which the divergence is expected to be as allowed.

    The logarithm of the divergence is taken as linear between both positions; it is the middle
    if one of them has no divergence.
    """
    ends = [
        _read_divergence(rows[position]) if position in rows else 0.0 for position in (low, high)
    ]
    # noise can also order two close positions the wrong way
    if not all(0 < end < math.inf for end in ends) or ends[0] >= ends[1]:
        return (low + high) // 2
    share = math.log(allowed / ends[0]) / math.log(ends[1] / ends[0])
    # strictly between both, so that every step narrows the range
    return min(max(low + round(share * (high - low)), low + 1), high - 1)


def _explain_unreachable(rows: list[Row], recipe: Recipe) -> TargetError:
    """Return the error of a tolerance that no model keeps."""
    cuts = [row for row in rows if row["cut"]]
    reason = "no channel can be removed"
    if cuts:
        least = min(cuts, key=_read_divergence)
        reason = (
            f"the smallest cut that was tried ({', '.join(least['target'])}) diverges by "
            f"{_read_divergence(least):.3g}"
        )
    return TargetError(
        UNREACHABLE,
        f"max_divergence {recipe.max_divergence:g} cannot be met: {reason}; "
        + ("raise it, or lower --round-to" if channel_multiple(recipe) > 1 else "raise it"),
    )


def _read_divergence(row: Row) -> float:
    """Return the divergence of a row, infinite if it is not finite or the target unreachable."""
    return or_infinite(row["divergence"])


def tolerance_row(search: BisectionSummary) -> tuple[TargetRow, ...]:
    """Return the row of a tolerance among the targets."""
    if search.max_divergence is None:
        return ()
    target = f"max_divergence={search.max_divergence:g}"
    return (TargetRow(target, search.max_divergence, or_infinite(search.reached)),)


def tolerance_warning(recipe: Recipe, decision: Decision) -> Iterator[str]:
    """Yield a warning if a tolerance prevented the recipe's targets."""
    search = decision.bisection
    if search.max_divergence is None or not recipe.target:
        return
    if decision.recipe.target != recipe.target:
        target, reached = (", ".join(map(str, r.target)) for r in (recipe, decision.recipe))
        yield (
            f"max_divergence {search.max_divergence:g} stopped pruning at {reached}, "
            f"before the target {target}"
        )
