"""Command `tune`: fine-tune the weights of a model, with or without pruning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.command import command
from onnxprune.cli.common import (
    emit,
    ignored_options,
    model_argument,
    output_options,
    quiet_option,
    recipe_from,
    recipe_options,
    say,
    shared,
)
from onnxprune.cli.progress import show_progress
from onnxprune.cli.tune_options import OPTIONS, PRECISIONS, add_options
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.data.dataset import Data
    from onnxprune.data.labeled import LabeledData
    from onnxprune.events import Listener
    from onnxprune.ir.io import Model
    from onnxprune.run.recipe import Recipe
    from onnxprune.sparsify.surgery import KeepZeros, PruneAndSplice
    from onnxprune.tune.settings import TuneResult, TuneSettings
    from onnxprune.types import Plan

ALL_SAMPLES = 1 << 40  # more than any file or folder holds
_LABEL_LOSSES = frozenset({"ce", "task"})


@command(
    "onnxprune tune model.pruned.onnx --teacher model.onnx --data images/  # no labels needed",
)
@model_argument()
@output_options("Tuned model; MODEL.tuned.onnx next to the model by default.")
@add_options
@recipe_options(
    "analyze",
    "plan",
    "data",
    "runtime",
    "evaluate",
    "write",
    # options of plan searches: training decides which channels are removed; device is the one that
    # trains
    without=(
        "allocate",
        "blocks",
        "device",
        "fast",
        "losses",
        "method",
        "method_option",
        "ratio",
        "swaps",
    ),
)
@ignored_options("blocks", "swaps")
@quiet_option
@shared
def tune(
    model: str,
    output: str | None,
    overwrite: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Fine-tune the weights of MODEL with torch; its graph does not change.

    The result is never worse than MODEL on the validation samples.

    With --target, channels are removed while the network trains (Group Fisher pruning): the
    least important ones after every --interval steps, until the target is met. MODEL is the
    teacher unless --teacher names another.
    """
    from onnxprune.files import write_json
    from onnxprune.ir.io import load, save
    from onnxprune.run.outputs import check_output, choose_output

    # these are no fields of a recipe, which would refuse them
    own = {option.name: values.pop(option.name) for option in OPTIONS}
    recipe = recipe_from(recipe_file, values)
    path = str(choose_output(output, model, ".tuned.onnx"))
    # before the training, which can take hours
    check_output(path, overwrite)
    source = load(model)
    # without --samples all samples of a file or a folder are used, not the recipe's default
    samples = recipe.samples if values.get("samples") is not None else None
    job = _read_job(source, own, recipe, samples, path)
    with show_progress() as progress:
        if values["target"]:
            result, plan = _prune_and_tune(source, job, own, recipe, progress)
        else:
            result, plan = _tune(source, job, own, recipe, progress), None
    # of several processes only the first writes
    if os.environ.get("RANK", "0") != "0":
        return
    save(result.model, path, external_data=recipe.external_data, overwrite=overwrite)
    if plan is not None and own["plan"]:
        write_json(own["plan"], plan.to_json())
    _report(source, result, recipe, path, as_json)


@dataclass(frozen=True)
class _TuneInputs:
    """Inputs that both ways of tuning take.

    Attributes
    ----------
    data : Data or LabeledData
        Samples to tune with.
    settings : TuneSettings
        Hyperparameters.
    keywords : dict
        Teacher, task loss, validation samples, metric and checkpoint.
    """

    data: Data | LabeledData
    settings: TuneSettings
    keywords: Mapping[str, Any]


def _read_job(
    model: Model, own: Mapping[str, Any], recipe: Recipe, samples: int | None, path: str
) -> _TuneInputs:
    """Load everything that the options name."""
    from onnxprune.ir.io import load
    from onnxprune.metrics import find_metric
    from onnxprune.metrics.base import find_function
    from onnxprune.run.adapter import metric_options

    if recipe.data is None:
        raise UsageError("data-missing", "tuning needs samples: pass --data PATH")
    # read here, because losses.parse needs torch
    terms = {term.split("*")[-1].strip() for term in own["loss"].split("+")}
    labeled = bool(_LABEL_LOSSES & terms)
    keywords: dict[str, Any] = dict.fromkeys(("teacher", "task_loss", "validation", "metric"))
    if own["teacher"]:
        keywords["teacher"] = load(own["teacher"])
    if own["task_loss"]:
        keywords["task_loss"] = find_function(own["task_loss"], "loss")
    if own["validate"]:
        # a metric needs labels even if the loss does not
        with_labels = labeled or bool(recipe.metric)
        keywords["validation"] = _open_samples(model, own["validate"], recipe, None, with_labels)
    if recipe.metric and (labeled or own["validate"]):
        # a function that makes one: a metric accumulates samples, so each evaluation needs its own
        keywords["metric"] = lambda: find_metric(recipe.metric[0], metric_options(recipe))
    # next to the output, so that the same command resumes a killed training
    keywords["checkpoint"] = own["checkpoint"] or str(Path(path).with_suffix(".checkpoint"))
    data = _open_samples(model, recipe.data, recipe, samples, labeled)
    return _TuneInputs(data, _read_settings(recipe, own), keywords)


def _read_settings(recipe: Recipe, own: Mapping[str, Any]) -> TuneSettings:
    """Return the hyperparameters that the options and the recipe hold."""
    from onnxprune.tune.settings import TuneSettings

    given = {f.name: own[f.name] for f in fields(TuneSettings) if f.name in own}
    # an explicit --augment wins over --flip, which a recipe may set
    if own["augment"] is None:
        given["augment"] = "flip" if recipe.flip else "none"
    return TuneSettings(
        **given,
        features=own["feature"],
        precision=PRECISIONS[own["mixed"]],
        batch_size=recipe.batch_size,
        threads=recipe.threads or 1,  # torch rounds sums by their number
        seed=recipe.seed,
        class_offset=recipe.class_offset,
    )


def _open_samples(
    model: Model,
    location: str | tuple[str, ...],
    recipe: Recipe,
    samples: int | None,
    labeled: bool,
) -> Data | LabeledData:
    """Open labeled samples or plain inputs; `samples` None = all of a file or folder."""
    from onnxprune.data.sources import has_end
    from onnxprune.run.adapter import SAMPLES, open_inputs, open_labeled_inputs

    if labeled:
        return open_labeled_inputs(model, recipe, location, samples)
    if samples is None:
        # generated inputs (loaders, synthetic ones) have no end: take the recipe's number
        samples = ALL_SAMPLES if has_end(location) else recipe.samples or SAMPLES
    return open_inputs(model, recipe, samples, location)


def _tune(
    model: Model, job: _TuneInputs, own: Mapping[str, Any], recipe: Recipe, progress: Listener
) -> TuneResult:
    """Tune the weights without pruning."""
    from onnxprune.tune.finetune import tune as run

    hook = _build_hook(model, own, recipe)
    return run(model, job.data, job.settings, hook=hook, on_event=progress, **job.keywords)


def _build_hook(
    model: Model, own: Mapping[str, Any], recipe: Recipe
) -> KeepZeros | PruneAndSplice | None:
    """Return what masks single weights in the forward pass, None if nothing does."""
    from onnxprune.sparsify.surgery import KeepZeros, PruneAndSplice, SurgerySettings

    if own["surgery"] and own["keep_zeros"]:
        raise UsageError(
            "tune-hook",
            "--surgery may turn zeros back into weights, --keep-zeros forbids it: pass only one",
        )
    if own["surgery"]:
        settings = SurgerySettings(
            c_rate=own["c_rate"], stop_step=own["surgery_steps"], seed=recipe.seed
        )
        return PruneAndSplice(model, settings)
    return KeepZeros(model) if own["keep_zeros"] else None


def _prune_and_tune(
    model: Model, job: _TuneInputs, own: Mapping[str, Any], recipe: Recipe, progress: Listener
) -> tuple[TuneResult, Plan]:
    """Remove channels while training, then tune; return the result and the plan."""
    from onnxprune.ir.io import digest
    from onnxprune.run.adapter import analyze_for, constraints_for, count_at
    from onnxprune.run.evaluation import RESULT
    from onnxprune.tune.fisher import Pruning
    from onnxprune.tune.pruning import prune_and_tune

    if own["surgery"] or own["keep_zeros"]:
        raise UsageError(
            "tune-hook",
            "--target removes channels, --surgery and --keep-zeros mask single weights: "
            "run one after the other",
        )
    analysis = count_at(analyze_for(model, recipe), job.data, recipe)
    costs = analysis.cost().as_dict()
    budgets = {}
    for target in recipe.target:
        name = f"latency.{target.engine}" if target.engine else target.cost
        budgets[name] = target.ceiling(costs.get(target.cost, 0))
    constraints = constraints_for(recipe, budgets)
    pruning = Pruning(
        own["interval"],
        own["cut_step"],
        own["lr_ratio"],
        own["normalization"],
        *recipe.engine[:1],
    )
    pruned = prune_and_tune(
        analysis, job.data, constraints, job.settings, pruning, on_event=progress, **job.keywords
    )
    # as after a repair, the hash lets `verify` accept weights that differ from those of a cut
    decided_by = {**pruned.plan.decided_by, "repair": "tune", RESULT: digest(pruned.result.model)}
    return pruned.result, replace(pruned.plan, decided_by=decided_by)


def _report(source: Model, result: TuneResult, recipe: Recipe, path: str, as_json: bool) -> None:
    """Print the scores, and the metrics of both models if there are labels."""
    from onnxprune.run.adapter import open_labels
    from onnxprune.run.evaluation import evaluate

    labels = open_labels(source, recipe)
    quality = evaluate(source, result.model, None, labels, recipe).quality
    if as_json:
        emit(
            {
                "output": path,
                "score": result.score,
                "start_score": result.start_score,
                "epoch": result.epoch,
                "history": [dict(row) for row in result.history],
                "quality": {name: row.to_json() for name, row in quality.items()},
            }
        )
    else:
        click.echo(
            f"validation score {result.start_score:.4f} -> {result.score:.4f} "
            f"(best epoch {result.epoch})"
        )
        for name, row in quality.items():
            click.echo(
                f"{name}: {row['before']:.4f} -> {row['after']:.4f} "
                f"({row['samples']} labeled inputs)"
            )
    say(f"written to {path}")
