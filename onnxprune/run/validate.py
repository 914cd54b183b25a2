"""Checks of a recipe before any work: names that exist, options that fit together."""

from __future__ import annotations

from onnxprune.data.joined import check_locations
from onnxprune.data.label_formats import parse_labeled
from onnxprune.engines import ENGINES
from onnxprune.engines.base import require
from onnxprune.errors import DataError, UsageError
from onnxprune.metrics import find_metric
from onnxprune.metrics.decoding import find_decoder
from onnxprune.named import Named
from onnxprune.run.adapter import engines_of, metric_options
from onnxprune.run.quantize_options import INT8
from onnxprune.run.recipe import Recipe
from onnxprune.search import ONE_SHOT

MOST_CONTROLS = 20


def validate(recipe: Recipe, has_data: bool) -> None:
    """Check that a run can begin.

    Parameters
    ----------
    has_data
        Whether there are calibration inputs.

    Raises
    ------
    UsageError
        Options exclude each other or lack another one; the message says which and what to do.
    EngineError
        An engine is not available.
    DataError
        The labeled inputs do not exist.
    """
    if not isinstance(recipe.data, Named):
        check_locations(recipe.data)
    _check_names(recipe)
    _check_clashes(recipe)
    _check_inputs(recipe, has_data)


def _check_names(recipe: Recipe) -> None:
    """Check engines, metrics and the path of the labels."""
    # an engine is first used after long stages, too late to find that it is not installed
    for name in engines_of(recipe):
        require(ENGINES.get(name))
    for name in recipe.metric:
        # only for its errors: an unknown name, or options that do not fit
        find_metric(name, metric_options(recipe))
    if recipe.decoder is not None:
        find_decoder(recipe.decoder)
    if recipe.metric and not recipe.labeled:
        raise UsageError(
            "labeled-missing",
            f"metric {recipe.metric[0]!r} needs labeled inputs: pass --labeled PATH",
        )
    in_memory = isinstance(recipe.labeled, Named)
    if recipe.labeled and not in_memory and not parse_labeled(recipe.labeled)[1].exists():
        raise DataError(
            "data-missing",
            f"no labeled inputs at {recipe.labeled}: the file or folder does not exist",
        )


def _has_candidates(recipe: Recipe) -> bool:
    """Return whether the user named candidates."""
    # "auto" gives way to other options, so it clashes with none
    return recipe.candidate not in ((), ("auto",))


def _check_clashes(recipe: Recipe) -> None:
    """Check options that exclude each other."""
    if recipe.control > MOST_CONTROLS:
        raise UsageError(
            "option-value",
            f"control: {recipe.control} is more than the limit of {MOST_CONTROLS} models",
        )
    selecting = []
    if recipe.max_divergence is not None:
        selecting.append("max_divergence")
    if _has_candidates(recipe):
        selecting.append("candidate")
    elif recipe.thorough:
        selecting.append("thorough")
    # a curve builds models but selects none, so that a latency target does not exclude it
    building = [*selecting, "curve"] if recipe.curve else selecting
    if building and recipe.method != ONE_SHOT:
        raise UsageError(
            "options-clash",
            f"{building[0]} needs method {ONE_SHOT}, which scores channels once; method "
            f"{recipe.method!r} does not",
        )
    if recipe.low_rank and recipe.method != ONE_SHOT:
        raise UsageError(
            "options-clash",
            f"low_rank needs method {ONE_SHOT}, which plans ranks and widths together; method "
            f"{recipe.method!r} does not",
        )
    timed = next((str(target) for target in recipe.target if target.engine), None)
    if selecting and timed:
        raise UsageError(
            "options-clash",
            f"{selecting[0]} supports only counted targets (macs, params, bytes), not {timed}: "
            "omit one of the two",
        )
    if len(selecting) > 1:
        raise UsageError(
            "options-clash",
            "candidates are compared at one target, which max_divergence does not have: omit one "
            "of the two",
        )


def _check_inputs(recipe: Recipe, has_data: bool) -> None:
    """Check that there are inputs to measure on."""
    if recipe.quantize == INT8 and not has_data:
        raise DataError(
            "int8-without-data", "int8 needs real inputs to determine ranges: pass --data PATH"
        )
    if recipe.low_rank and not has_data:
        raise UsageError(
            "data-missing", "low_rank needs real inputs to measure responses: pass --data PATH"
        )
    # random inputs say nothing about the divergence on real ones
    if recipe.max_divergence is not None and not has_data:
        raise UsageError("data-missing", "max_divergence needs real inputs: pass --data PATH")
    if (_has_candidates(recipe) or recipe.thorough) and not recipe.metric and not has_data:
        raise UsageError(
            "data-missing",
            "candidates are compared on inputs: pass --data PATH, or --metric NAME and "
            "--labeled PATH",
        )
    if (recipe.curve or recipe.control) and not has_data and not recipe.metric:
        name = "curve" if recipe.curve else "control"
        raise UsageError(
            "data-missing",
            f"{name} needs inputs to evaluate models on: pass --data PATH, or --metric NAME and "
            "--labeled PATH",
        )
