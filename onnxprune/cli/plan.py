"""Commands plan, cut and verify: the steps of a run, with the plan as a file between them."""

from __future__ import annotations

from typing import Any

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


@command(
    "onnxprune plan model.onnx --data images/ -o plan.json  # decide, and change nothing",
)
@model_argument()
@output_options("Path of the plan. Default: stdout.")
@recipe_options("analyze", "data", "runtime", "score", "plan")
@quiet_option
@shared
def plan(
    model: str,
    output: str | None,
    overwrite: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Decide which channels of MODEL to remove, and write the plan as JSON."""
    from onnxprune.files import write_json
    from onnxprune.run.outputs import check_not_read, check_output
    from onnxprune.run.pipeline import make_plan

    recipe = recipe_from(recipe_file, values)
    if output:
        # before the search, which can take long
        check_not_read(output, [model])
        check_output(output, overwrite)
    with show_progress() as progress:
        result = make_plan(model, recipe, progress).to_json()
    if output:
        write_json(output, result)
        say(f"written to {output}")
    if as_json or not output:
        emit(result)


@command(
    "onnxprune cut model.onnx plan.json -o small.onnx  # apply a plan",
)
@model_argument()
@click.argument("plan_file", metavar="PLAN", type=click.Path())
@output_options("Path of the pruned model. Default: MODEL.pruned.onnx next to MODEL.")
@recipe_options("write")
@shared
def cut(
    model: str,
    plan_file: str,
    output: str | None,
    overwrite: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Remove from MODEL the channels that PLAN (plan.json) does not keep; repair nothing."""
    from onnxprune.analysis.stored import count_stored
    from onnxprune.ir.io import load, save
    from onnxprune.run.adapter import analyze_for_plan
    from onnxprune.run.outputs import check_output, choose_output
    from onnxprune.surgery.cut import cut as remove_channels
    from onnxprune.types import Plan

    recipe = recipe_from(recipe_file, values)
    path = str(choose_output(output, model, reads=[plan_file]))
    check_output(path, overwrite)
    plan = Plan.load(plan_file)
    analysis = analyze_for_plan(model, plan)
    pruned = remove_channels(analysis, plan)
    save(pruned, path, external_data=recipe.external_data, overwrite=overwrite)
    before = count_stored(load(model), analysis.cost())
    after = count_stored(pruned, analysis.cost(plan.kept))
    if as_json:
        costs = {"before": before.as_dict(), "after": after.as_dict()}
        emit({"source": model, "output": path, **costs})
    else:
        macs = after.macs / max(before.macs, 1)
        params = after.params / max(before.params, 1)
        click.echo(f"{path}: {macs:.1%} of the MACs, {params:.1%} of the parameters")


@command(
    "onnxprune verify model.onnx small.onnx --plan plan.json  # check a cut",
)
@model_argument("original")
@model_argument("pruned")
@click.option(
    "--plan",
    "plan_file",
    required=True,
    metavar="PLAN",
    type=click.Path(),
    help="Plan that PRUNED was made with.",
)
@recipe_options("data", "runtime", "verify", without=("flip", "batch_size"))
@ignored_options("flip", "batch_size")
@shared
def verify(
    original: str,
    pruned: str,
    plan_file: str,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Check that PRUNED equals ORIGINAL with the removed channels masked.

    Exit code 4 if it does not.
    """
    from onnxprune.ir.io import load
    from onnxprune.run.adapter import analyze_for_plan, check_synthetic, open_data_for
    from onnxprune.run.evaluation import verify_written
    from onnxprune.types import Plan

    recipe = recipe_from(recipe_file, values)
    plan = Plan.load(plan_file)
    # groups have the plan's names only under the options that it was made with
    analysis = analyze_for_plan(original, plan)
    data = open_data_for(analysis.model, recipe)
    # its error suggests --data, which that of a failed run would not
    check_synthetic(analysis.model, data)
    figures = verify_written(analysis, plan, load(pruned), data, recipe)
    if as_json:
        emit(figures)
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in figures.items()))
