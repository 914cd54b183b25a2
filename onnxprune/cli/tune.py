"""tune and rewrite: new values for the weights of a graph, and activations that an accelerator has."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.common import (
    emit,
    model_argument,
    output_options,
    recipe_from,
    recipe_options,
    say,
    shared,
)
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.ir.io import Model
    from onnxprune.run.recipe import Recipe
    from onnxprune.types import Plan

ALL_SAMPLES = 1 << 40
_PRECISIONS = {"f32": "float32", "bf16": "bfloat16"}


@click.command()
@model_argument()
@output_options("The tuned model; MODEL.tuned.onnx beside the model by default.")
@click.option(
    "--teacher",
    type=click.Path(),
    metavar="MODEL",
    help="The unpruned model, which every loss but ce and task follows.",
)
@click.option(
    "--loss",
    default="kd",
    metavar="TERMS",
    help="ce, kd, dist, output, feature, task, with weights: ce+0.5*dist.  [default: kd]",
)
@click.option(
    "--task-loss",
    metavar="MODULE:FUNCTION",
    help="The term task: (outputs, labels by name, as torch tensors) -> mean loss.",
)
@click.option(
    "--validate",
    type=click.Path(),
    metavar="PATH",
    help="Samples that choose the best weights; a share of --data by default.",
)
@click.option(
    "--epochs", type=click.IntRange(1), default=10, show_default=True, help="Passes over the data."
)
@click.option(
    "--steps", type=click.IntRange(0), default=0, metavar="N", help="Steps; they win over --epochs."
)
@click.option(
    "--lr",
    type=float,
    metavar="X",
    help="Peak learning rate; by default 1e-4 for a graph without normalization, else 1e-3.",
)
@click.option(
    "--force-lr",
    is_flag=True,
    help="Allow more than 1e-4 for a graph whose normalization is folded.",
)
@click.option(
    "--optimizer", default="adamw", metavar="NAME", help="adamw or sgd.  [default: adamw]"
)
@click.option(
    "--batchnorm",
    default="keep",
    metavar="HOW",
    help="keep, frozen, or insert: put BatchNormalization back while tuning.  [default: keep]",
)
@click.option(
    "--augment", default="none", metavar="HOW", help="none, flip or flip-shift.  [default: none]"
)
@click.option(
    "--ema",
    type=float,
    default=0.99,
    show_default=True,
    metavar="X",
    help="Decay of averaged weights; 0 = none.",
)
@click.option(
    "--mixed",
    "precision",
    type=click.Choice(list(_PRECISIONS)),
    default="f32",
    show_default=True,
    help="Type of the passes.",
)
@click.option(
    "--temperature", type=float, default=4.0, show_default=True, metavar="X", help="Of kd and dist."
)
@click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="TENSOR",
    help="Inner tensors for the loss feature.",
)
@click.option(
    "--limit-s",
    type=float,
    default=0.0,
    metavar="S",
    help="Stop after so many seconds and keep the best.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--checkpoint",
    type=click.Path(),
    metavar="FILE",
    help="Progress; the same command goes on from it. OUT with .checkpoint by default.",
)
@click.option("--keep-zeros", is_flag=True, help="Zeros of a sparse model stay zero.")
@click.option(
    "--surgery",
    is_flag=True,
    help="Dynamic network surgery: prune and splice weights while tuning.",
)
@click.option(
    "--c-rate",
    type=float,
    default=3.0,
    show_default=True,
    metavar="X",
    help="Surgery: threshold is mean + X deviations of |w|.",
)
@click.option(
    "--surgery-steps",
    type=click.IntRange(1),
    default=10000,
    show_default=True,
    metavar="N",
    help="Surgery: masks rest from step N on.",
)
@click.option(
    "--interval",
    type=click.IntRange(1),
    default=25,
    show_default=True,
    metavar="N",
    help="With --target: steps between two cuts.",
)
@click.option(
    "--cut-step",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="With --target: channels of a cut; a fiftieth of all by default.",
)
@click.option(
    "--lr-ratio",
    type=float,
    default=1.0,
    show_default=True,
    metavar="X",
    help="With --target: share of the learning rate while channels go.",
)
@click.option(
    "--normalization",
    default="flops",
    metavar="NAME",
    help="With --target: importance over none, flops, act or latency.  [default: flops]",
)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(),
    metavar="FILE",
    help="With --target: where the plan goes, which channels stayed.",
)
@recipe_options(
    "analyze",
    "plan",
    "data",
    "runtime",
    "evaluate",
    "write",
    without=("allocate", "method", "method_option", "losses", "fast", "ratio"),
)
@shared
def tune(
    model: str,
    output: str | None,
    overwrite: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Fine-tune the values of MODEL's weights with torch; the graph stays. Never ends below its start on the validation samples.

    With --target, channels go while it learns (Group Fisher pruning), every --interval steps the least important ones, until the target is met; MODEL is
    the teacher where none is named.
    """
    from onnxprune.files import write_json
    from onnxprune.ir.io import load, save
    from onnxprune.metrics import find_metric
    from onnxprune.metrics.base import find_function
    from onnxprune.report.terminal import Progress
    from onnxprune.run.evaluation import evaluated, metric_options, open_labels
    from onnxprune.run.outputs import check_output
    from onnxprune.tune.finetune import tune as run

    own = {name: values.pop(name) for name in _OWN}
    recipe = recipe_from(recipe_file, values)
    place = output or str(Path(model).with_suffix(".tuned.onnx"))
    check_output(place, overwrite)
    if recipe.data is None:
        raise UsageError("data-missing", "tuning needs samples: pass --data PATH")
    source, teacher = load(model), load(own["teacher"]) if own["teacher"] else None
    few = recipe.samples if values.get("samples") is not None else None
    labeled = bool(
        {"ce", "task"} & {part.split("*")[-1].strip() for part in own["loss"].split("+")}
    )
    metric, plan = recipe.metric[0] if recipe.metric else "", None
    given: dict[str, Any] = {
        "teacher": teacher,
        "task_loss": find_function(own["task_loss"], "loss") if own["task_loss"] else None,
        "validation": _samples(source, own["validate"], recipe, None, labeled or bool(metric))
        if own["validate"]
        else None,
        "metric": (lambda: find_metric(metric, metric_options(recipe)))
        if metric and (labeled or own["validate"])
        else None,
        "checkpoint": own["checkpoint"] or str(Path(place).with_suffix(".checkpoint")),
    }
    data, settings, hook = (
        _samples(source, recipe.data, recipe, few, labeled),
        _settings(recipe, own),
        _hook(source, own, recipe),
    )
    with Progress() as progress:
        if values["target"]:
            result, plan = _pruned(
                source, data, settings, own, recipe, {**given, "on_event": progress}
            )
        else:
            result = run(source, data, settings, hook=hook, on_event=progress, **given)
    if os.environ.get("RANK", "0") != "0":
        return
    save(result.model, place, external_data=recipe.external_data, overwrite=overwrite)
    if plan is not None and own["plan_file"]:
        write_json(own["plan_file"], plan.to_json())
    found: dict[str, Any] = {
        "output": place,
        "score": result.score,
        "start_score": result.start_score,
        "epoch": result.epoch,
        "history": [dict(row) for row in result.history],
    }
    found |= {
        "quality": evaluated(source, result.model, None, open_labels(source, recipe), recipe)[
            "quality"
        ]
    }
    if as_json:
        emit(found)
    else:
        click.echo(
            f"validation score {result.start_score:.4f} -> {result.score:.4f}, best of epoch {result.epoch}"
        )
        for name, row in found["quality"].items():
            click.echo(
                f"{name}: {row['before']:.4f} -> {row['after']:.4f} on {row['samples']} labeled inputs"
            )
    say(f"written to {place}")


_OWN = (
    "teacher",
    "loss",
    "task_loss",
    "validate",
    "epochs",
    "steps",
    "lr",
    "force_lr",
    "optimizer",
    "batchnorm",
    "augment",
    "ema",
    "precision",
    "temperature",
    "features",
    "limit_s",
    "device",
    "checkpoint",
    "keep_zeros",
    "surgery",
    "c_rate",
    "surgery_steps",
    "interval",
    "cut_step",
    "lr_ratio",
    "normalization",
    "plan_file",
)


def _settings(recipe: Recipe, own: dict[str, Any]) -> Any:
    """`tune.settings.Settings` of the flags."""
    from onnxprune.tune.settings import Settings

    names = (
        "loss",
        "epochs",
        "steps",
        "lr",
        "force_lr",
        "optimizer",
        "batchnorm",
        "augment",
        "ema",
        "temperature",
        "features",
        "limit_s",
        "device",
    )
    return Settings(
        **{name: own[name] for name in names},
        precision=_PRECISIONS[own["precision"]],
        batch_size=recipe.batch_size,
        threads=recipe.threads,
        seed=recipe.seed,
        class_offset=recipe.class_offset,
    )


def _pruned(
    model: Model,
    data: Any,
    settings: Any,
    own: dict[str, Any],
    recipe: Recipe,
    given: dict[str, Any],
) -> tuple[Any, Plan]:
    """(result, plan) of pruning while tuning."""
    from onnxprune.allocators.base import Constraints
    from onnxprune.ir.io import digest
    from onnxprune.run.evaluation import RESULT
    from onnxprune.run.pipeline import analyzed
    from onnxprune.run.planning import by_engine, multiple
    from onnxprune.tune.fisher import Pruning
    from onnxprune.tune.pruning import prune_and_tune

    if own["surgery"] or own["keep_zeros"]:
        raise UsageError(
            "tune-hook",
            "--target cuts whole channels, --surgery and --keep-zeros are of single weights: do one after the other",
        )
    analysis = analyzed(model, recipe)
    costs = analysis.cost().as_dict()
    budgets = {
        f"latency.{t.engine}" if t.engine else t.cost: t.ceiling(costs.get(t.cost, 0))
        for t in recipe.target
    }
    constraints = Constraints(
        budgets,
        round_to=multiple(recipe),
        half_block=by_engine(recipe),
        floor=recipe.floor,
        max_fraction=recipe.max_fraction,
    )
    found = prune_and_tune(
        analysis,
        data,
        constraints,
        settings,
        Pruning(
            own["interval"],
            own["cut_step"],
            own["lr_ratio"],
            own["normalization"],
            *recipe.engine[:1],
        ),
        **given,
    )
    left = {"repair": "tune", RESULT: digest(found.result.model)}
    return found.result, replace(found.plan, decided_by={**found.plan.decided_by, **left})


def _hook(model: Model, own: dict[str, Any], recipe: Recipe) -> Any:
    """What changes weights on their way into the forward pass."""
    from onnxprune.sparsify.surgery import KeepZeros, PruneAndSplice, SurgerySettings

    if own["surgery"] and own["keep_zeros"]:
        raise UsageError(
            "tune-hook", "--surgery lets zeros come back, --keep-zeros does not: give one of them"
        )
    if own["surgery"]:
        return PruneAndSplice(
            model,
            SurgerySettings(c_rate=own["c_rate"], stop_step=own["surgery_steps"], seed=recipe.seed),
        )
    return KeepZeros(model) if own["keep_zeros"] else None


def _samples(model: Model, where: str, recipe: Recipe, few: int | None, labeled: bool) -> Any:
    """Labeled samples where the loss or the metric needs labels, else inputs alone; all of a file or a folder unless --samples says how many."""
    from onnxprune.data.dataset import open_data
    from onnxprune.data.labeled import open_labeled
    from onnxprune.run.evaluation import input_types, preprocess

    inputs, how, shapes = input_types(model), preprocess(recipe), recipe.shape or None
    if labeled:
        return open_labeled(
            where, inputs, samples=few, seed=recipe.seed, preprocess=how, shapes=shapes
        )
    count = few or (ALL_SAMPLES if os.path.exists(where) else recipe.samples)
    return open_data(where, inputs, samples=count, seed=recipe.seed, preprocess=how, shapes=shapes)


@click.command()
@model_argument()
@output_options("The new model; MODEL.rewritten.onnx beside the model by default.")
@click.option(
    "--activation",
    required=True,
    metavar="NAME",
    help="What to put in place: relu, relu6, hardswish or leakyrelu.",
)
@click.option(
    "--replace",
    default="leakyrelu,silu,hardswish,gelu",
    metavar="NAME,NAME",
    help="What to replace.  [default: leakyrelu,silu,hardswish,gelu]",
)
@recipe_options("write")
@shared
def rewrite(
    model: str,
    output: str | None,
    overwrite: bool,
    activation: str,
    replace: str,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Replace activations of MODEL that an accelerator lacks. The network changes: tune it afterwards."""
    from onnxprune.ir.io import load, save
    from onnxprune.run.outputs import check_output
    from onnxprune.tune.rewrite import rewrite_activations

    recipe = recipe_from(recipe_file, values)
    place = output or str(Path(model).with_suffix(".rewritten.onnx"))
    check_output(place, overwrite)
    sources = [name.strip() for name in replace.split(",") if name.strip() != activation]
    found = rewrite_activations(load(model), activation, sources)
    save(found.model, place, external_data=recipe.external_data, overwrite=overwrite)
    if as_json:
        emit(
            {
                "output": place,
                "activation": activation,
                "replaced": dict(found.replaced),
                "left": dict(found.left),
            }
        )
    else:
        click.echo(
            "\n".join(
                f"{kind}: {count} replaced by {activation}"
                for kind, count in found.replaced.items()
            )
        )
        click.echo(
            "\n".join(f"{kind}: {count} left" for kind, count in found.left.items()),
            nl=bool(found.left),
        )
    say(f"written to {place}; tune it: onnxprune tune {place} --teacher {model} --data ...")
