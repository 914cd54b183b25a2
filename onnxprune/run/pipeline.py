"""Pipeline: load, analyze, score, plan, cut, verify, repair, measure, report.

Every stage is a function of the model, the recipe and the data. With a run directory, the
expensive stages (score, plan, verify, repair, measure) keep their results there, and the same
command reuses them; the analysis and the cut are fast and always done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.analysis.copies import describe_copies
from onnxprune.blas import limit_blas
from onnxprune.criteria import CRITERIA
from onnxprune.data.dataset import Data
from onnxprune.errors import UsageError
from onnxprune.events import Listener, silent
from onnxprune.files import hash_key
from onnxprune.ir.io import Model, Source, load
from onnxprune.ir.weights import size_bytes
from onnxprune.report.conclusions import DOUBT
from onnxprune.run.adapter import (
    check_synthetic,
    context_for,
    count_at,
    open_data_for,
    open_labels,
)
from onnxprune.run.detector import name_decoder
from onnxprune.run.forecast import announce, forecast, forecast_plan
from onnxprune.run.input_judgment import check_distinct, describe_skipped, judge_inputs
from onnxprune.run.job import RunJob, analyze_stage, decide_stage
from onnxprune.run.keywords import RecipeKeywords
from onnxprune.run.label_judgment import check_metrics, judge_labels
from onnxprune.run.low_rank import factor_stage
from onnxprune.run.outputs import check_output, check_space, choose_output, default_run_dir
from onnxprune.run.provenance import collect_provenance
from onnxprune.run.recipe import Recipe
from onnxprune.run.recipe_file import read_data_only
from onnxprune.run.resolve import reachable_target, resolve
from onnxprune.run.results import Result
from onnxprune.run.rundir import open_run_dir
from onnxprune.run.splits import split_inputs
from onnxprune.run.stages import Stages
from onnxprune.run.stored import describe_unused
from onnxprune.run.validate import validate
from onnxprune.run.warnings import INPUTS, default_preprocessing, of_topic
from onnxprune.search import ONE_SHOT
from onnxprune.types import Plan, Scores

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11


def optimize(
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    on_event: Listener = silent,
    **options: Unpack[RecipeKeywords],
) -> Result:
    """Prune a model; return it with its plan and the report.

    Parameters
    ----------
    model
        What `load` takes: a path, bytes, a Model, a ModelProto, or a graph of onnx-graphsurgeon
        or onnx_ir.
    output
        Path of the result; None keeps it in memory.
    recipe
        A Recipe or a TOML file; `options` override it.
    run_dir
        Folder for plan, report, resolved recipe and journal. By default the output's path with
        suffix `.run`; none if there is no output.
    overwrite
        Replace an existing output.
    on_event
        Called at the beginning and the end of each stage, and with the progress of long ones.
    options
        The fields of Recipe: `target="macs=50%"`, `data="images/"`, `criterion="l2"`, ...
        `data` and `labeled` may also be objects: an array, arrays by input name, an iterable of
        feeds such as a list, a generator or a torch DataLoader (for `labeled`, of pairs), or what
        `open_data` returns; `metric`, `decoder` and `losses` may be functions.

    Raises
    ------
    OnnxpruneError
        Bad input, an unreachable target, a failed verification, or an output that cannot be
        written. The run then leaves no files behind.
    """
    recipe, data = _read_recipe(recipe, dict(options))
    # what can be checked without the model is checked before it is loaded
    validate(recipe, data is not None or bool(recipe.data))
    path = choose_output(output, model) if output else None
    folder = _choose_folder(path, run_dir)
    if path:
        # only an explicit True: None depends on the size of the result, which is not known yet
        overwrite = check_output(path, overwrite, folder, hash_key(recipe.plain()))
    stages = Stages(on_event)
    with _describe_interruption(stages, folder), ExitStack() as stack:
        stack.enter_context(limit_blas())
        source = stages.do("load", lambda: load(model))
        # as soon as the size is known, and before the run directory exists
        check_space(path, sum(map(size_bytes, source.weights.values())))
        if folder:
            # a folder that the user named remains after a failure
            stages.run = stack.enter_context(open_run_dir(folder, keep=run_dir is not None))
        job = _prepare(stages, recipe, source, data)
        return replace(job, output=path, overwrite=overwrite).run()


def _choose_folder(
    output: str | os.PathLike[str] | None, run_dir: str | os.PathLike[str] | None
) -> Path | None:
    """Return the run directory: the given one, else that of the output, if any."""
    if run_dir:
        return Path(run_dir)
    return default_run_dir(output) if output else None


@contextmanager
def _describe_interruption(stages: Stages, folder: Path | None) -> Iterator[None]:
    """Add the stage, and how to resume, to the message of a KeyboardInterrupt."""
    try:
        yield
    except KeyboardInterrupt:
        hint = f"; run the same command to resume from {folder}" if stages.run else ""
        raise KeyboardInterrupt(
            f"stopped in stage {stages.current}, no output was written{hint}"
        ) from None


def _prepare(stages: Stages, recipe: Recipe, source: Model, data: Data | None) -> RunJob:
    """Analyze the model, resolve "auto", and open and split the inputs."""
    analysis = analyze_stage(source, recipe, stages)
    given = recipe
    recipe, notes = resolve(given, analysis, data is not None)
    inputs = data or open_data_for(analysis.model, recipe)
    check_synthetic(analysis.model, inputs)
    check_distinct(inputs)
    analysis = count_at(analysis, inputs, recipe)
    # after the costs are counted at the data's shapes, which decide what is reachable
    recipe, raised = reachable_target(recipe, analysis, given)
    opened = open_labels(analysis.model, recipe)
    splits = split_inputs(inputs, opened, recipe)
    provenance = collect_provenance(analysis, inputs)
    labels = splits.report_labels
    if labels is not None:
        stages.note(f"labels: {labels.describe()}")
    recipe, head = name_decoder(source, labels or splits.report or inputs, recipe)
    stages.note(head)
    check_metrics(source, labels, recipe)
    skipped = (*describe_skipped(inputs), *describe_skipped(opened, "labeled "))
    doubts = (*judge_inputs(analysis, inputs), *judge_labels(analysis, labels, recipe))
    # before the first long stage, so that a run on wrong data can be stopped early
    for finding in (*skipped, *doubts, *default_preprocessing(inputs, recipe)):
        stages.warn(finding)
    stages.expect(*forecast(analysis, recipe, splits))
    for announcement in announce(analysis, recipe, splits):
        stages.note(announcement)
    of_file = (*describe_copies(analysis.copies), *describe_unused(source))
    others = of_topic(INPUTS, skipped, analysis.defects, of_file, notes, raised)
    before = (*of_topic(DOUBT, doubts), *others)
    if recipe.low_rank:
        analysis = factor_stage(stages, analysis, recipe, splits)
    return RunJob(stages, recipe, source, analysis, splits, provenance, given, before)


def make_plan(model: Source, recipe: Recipe, on_event: Listener = silent) -> Plan:
    """Analyze, score and allocate; return the plan.

    Raises
    ------
    UsageError
        The recipe has a tolerance, which only a run that repairs models can keep.
    """
    if recipe.max_divergence is not None:
        raise UsageError(
            "options-clash",
            "max_divergence needs repaired models to measure, which plan does not build: use "
            "optimize, which writes plan.json into its run directory",
        )
    stages = Stages(on_event)
    analysis = analyze_stage(model, recipe, stages)
    given = recipe
    recipe, _ = resolve(given, analysis)
    inputs = open_data_for(analysis.model, recipe)
    check_distinct(inputs)
    analysis = count_at(analysis, inputs, recipe)
    recipe, _ = reachable_target(recipe, analysis, given)
    stages.expect(*forecast_plan(analysis, recipe, inputs.samples))
    data = stages.watch(inputs)
    context = context_for(analysis, data, recipe, stages.progress)
    # other methods score each model that they visit
    scores: Scores = {}
    if recipe.method == ONE_SHOT:
        scores = stages.do("score", lambda: CRITERIA.get(recipe.criterion)(context))
    return stages.do("plan", lambda: decide_stage(context, scores, recipe, stages))


def _read_recipe(
    recipe: Recipe | str | os.PathLike[str] | None, options: dict[str, Any]
) -> tuple[Recipe, Data | None]:
    """Return the recipe with the options that override it, and data that are opened already."""
    data = options.pop("data") if isinstance(options.get("data"), Data) else None
    if recipe is None or not isinstance(recipe, Recipe):
        values = read_data_only(recipe, options) if recipe else {}
        recipe = Recipe.of(values)
    return recipe.but(options), data
