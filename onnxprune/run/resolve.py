"""Resolution of "auto": the method that each such option of a recipe stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from onnxprune.allocators.allocate import least_kept
from onnxprune.allocators.budgets import explain_mixing
from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.errors import TargetError, plural, printable
from onnxprune.run.adapter import SAMPLES, constraints_for
from onnxprune.run.candidates import CANDIDATES, THOROUGH
from onnxprune.run.recipe import Recipe
from onnxprune.search import ONE_SHOT
from onnxprune.statistics.moments import refittable

TARGET = "macs=50%"  # if neither a target nor a tolerance nor ratios are given
TARGET_SHARE = 0.5
REASONS = 3  # most frequent ones, in the error for a model that cannot be pruned
WITH_DATA = {"criterion": "reconstruction", "allocate": "divergence", "repair": "least-squares"}
WITHOUT_DATA = {"criterion": "l2", "allocate": "knapsack", "repair": "none"}
# with data, if most weights cannot be refitted (quantized, recurrent or computed)
WITHOUT_REFIT = {"criterion": "activation*weight", "allocate": "knapsack", "repair": "bias"}
# Calibration inputs: more never fit worse, but take longer. A pass over them takes at most so many
# multiply-accumulates, unless SAMPLES take more.
MOST_SAMPLES, SAMPLES_MACS = 2048, 2e11
LEAST_REFITTABLE = 0.5  # share of the channels; with fewer, least squares skips most of the model


def resolve(
    recipe: Recipe, analysis: Analysis, has_data: bool = False
) -> tuple[Recipe, tuple[str, ...]]:
    """Replace each "auto" of a recipe, and add a target if nothing says how much to remove.

    Parameters
    ----------
    has_data
        Whether there are calibration inputs besides those that the recipe names.

    Returns
    -------
    tuple
        The recipe, and warnings about the choice.
    """
    methods: Mapping[str, str] = WITHOUT_DATA
    warnings: tuple[str, ...] = ()
    if has_data or recipe.data:
        methods, warnings = _choose_with_data(recipe, analysis)
    values: dict[str, Any] = {
        option: name for option, name in methods.items() if getattr(recipe, option) == "auto"
    }
    if recipe.method != ONE_SHOT:
        # a search has a criterion of its own
        values.pop("criterion", None)
    if recipe.samples is None and recipe.data:
        macs = max(analysis.cost().macs, 1)
        values["samples"] = max(min(int(SAMPLES_MACS / macs), MOST_SAMPLES), SAMPLES)
    if recipe.candidate == ("auto",):
        # candidates are alternatives to the default; a method that the user names is not questioned
        by_default = all(values.get(name) == WITH_DATA[name] for name in ("criterion", "allocate"))
        values["candidate"] = CANDIDATES if by_default and _can_compare(recipe) else ()
    if recipe.thorough:
        given = values.get("candidate", recipe.candidate)
        values["candidate"] = tuple(dict.fromkeys((*THOROUGH, *given)))
    # ratios say how much to remove; a search takes its steps towards a target in any case
    by_ratio = bool(recipe.ratio) and recipe.method == ONE_SHOT
    if not recipe.target and recipe.max_divergence is None and not by_ratio:
        values["target"] = TARGET
    return recipe.but(values), warnings


def reachable_target(
    recipe: Recipe, analysis: Analysis, given: Recipe
) -> tuple[Recipe, tuple[str, ...]]:
    """Raise the default target if the model cannot be pruned that far.

    Nobody asked for half of the MACs of a model of which less can be removed, so such a run aims
    at half of what can be removed. A target that is given fails instead.

    Parameters
    ----------
    recipe
        Resolved recipe.
    analysis
        Analysis at the sizes that costs are counted at.
    given
        The recipe before `resolve`.

    Returns
    -------
    tuple
        The recipe, and a warning if the target was raised.

    Raises
    ------
    TargetError
        No channel can be removed, and no target is given.
    """
    if given.target or not recipe.target:
        return recipe, ()
    if not analysis.groups:
        raise _explain_frozen(analysis)
    total = analysis.cost().macs
    if not total:
        return recipe, ()
    limits = constraints_for(recipe, {})
    kept = least_kept(Context(analysis), limits)
    least = analysis.cost(kept).macs / total
    if least <= TARGET_SHARE:
        return recipe, ()
    if least == 1:
        raise TargetError(
            "no-channels",
            f"no channel can be removed within floor={limits.floor}, max_fraction="
            f"{limits.max_fraction:g}, round_to={limits.round_to} and the ratios; allow more, "
            "e.g. --round-to 1",
        )
    target = f"macs={(1 + least) / 2:.1%}"
    warning = (
        f"the default target {TARGET} cannot be met: {least:.1%} is the least within the limits. "
        f"The target is {target} instead, half of what can be removed; --target sets another"
    )
    return recipe.but({"target": target}), (warning,)


def _explain_frozen(analysis: Analysis) -> TargetError:
    """Return the error for a model without a channel that can be removed."""
    reasons = Counter(f"{f.op}: {f.reason}" if f.op else f.reason for f in analysis.frozen)
    most = [f"{text} ({plural(n, 'axis', 'axes')})" for text, n in reasons.most_common(REASONS)]
    why = f"all channels have to stay, because of: {', '.join(most)}"
    if not most:
        why = "no weight has an axis of channels between two layers"
    # the axes of one tensor are explained by its name
    tensor = next((f.tensor for f in analysis.frozen), "TENSOR")
    see = f"See: onnxprune inspect MODEL --why {printable(tensor)}"
    hints = "\n  ".join([*explain_mixing(analysis), see])
    return TargetError(
        "no-groups", f"nothing in this model can be pruned: {printable(why)}\n  {hints}"
    )


def _can_compare(recipe: Recipe) -> bool:
    """Return whether candidates can be compared, and no option excludes them."""
    # each candidate costs a repair; a tolerance has no single target to compare them at
    if recipe.fast or recipe.max_divergence is not None:
        return False
    # each candidate would need a search of its own by measured latency
    if any(target.engine for target in recipe.target):
        return False
    return bool(recipe.metric and recipe.labeled)


def _count_measurable(analysis: Analysis) -> int:
    """Return the number of channels in groups that statistics of activations can score."""
    measured: set[int] = set()
    for mask in analysis.masks:
        if analysis.measurable(mask):
            measured.update(analysis.axes.table(mask.ids).ravel().tolist())
    sizes = {group.name: group.size for group in analysis.groups}
    groups = analysis.causes.items()
    return sum(sizes[name] for name, causes in groups if measured.issuperset(causes.tolist()))


def _choose_with_data(recipe: Recipe, analysis: Analysis) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the methods for a model with data, and warnings about them."""
    channels = sum(group.size for group in analysis.groups)
    refitted = sum(analysis.group(name).size for name in refittable(analysis))
    if recipe.criterion == "auto" and refitted < LEAST_REFITTABLE * channels:
        warning = (
            f"{channels - refitted} of {channels} channels feed only quantized, recurrent or "
            "computed weights, which cannot be refitted; expect lower accuracy. If the model was "
            "quantized, prune the float model and quantize the result"
        )
        methods = dict(WITHOUT_REFIT)
        if not refitted:
            methods["repair"] = "none"
        measured = _count_measurable(analysis)
        if measured < LEAST_REFITTABLE * channels:
            warning = (
                f"the activations of {channels - measured} of {channels} channels cannot be "
                "measured, because they are in bodies of If, Loop or Scan: channels are scored by "
                "their weights only, and nothing is repaired"
            )
            methods = dict(WITHOUT_DATA)
        return methods, (warning,)
    methods = dict(WITH_DATA)
    if recipe.fast:
        methods["allocate"] = "layer-error"
    return methods, ()
