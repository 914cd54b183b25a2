"""plan, cut, verify: the job in steps, with the plan as a file between them."""

from __future__ import annotations

from typing import Any

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


@click.command()
@model_argument()
@output_options("Path of the plan. Default: stdout.")
@recipe_options("analyze", "data", "runtime", "score", "plan")
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
    from onnxprune.report.terminal import Progress
    from onnxprune.run.outputs import check_output
    from onnxprune.run.pipeline import make_plan

    recipe = recipe_from(recipe_file, values)
    if output:
        check_output(output, overwrite)
    with Progress() as progress:
        made = make_plan(model, recipe, progress)
    if output:
        write_json(output, made.to_json())
        say(f"written to {output}")
    if as_json or not output:
        emit(made.to_json())


@click.command()
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
    from onnxprune.ir.io import save
    from onnxprune.run.outputs import check_output, default_output
    from onnxprune.run.pipeline import replay
    from onnxprune.surgery.cut import cut as take_out
    from onnxprune.types import Plan

    recipe = recipe_from(recipe_file, values)
    place = str(output or default_output(model))
    check_output(place, overwrite)
    made = Plan.load(plan_file)
    analysis = replay(model, made)
    save(take_out(analysis, made), place, external_data=recipe.external_data, overwrite=overwrite)
    before, after = analysis.cost().as_dict(), analysis.cost(made.kept).as_dict()
    if as_json:
        emit({"source": model, "output": place, "before": before, "after": after})
    else:
        click.echo(
            f"{place}: {after['macs'] / max(before['macs'], 1):.1%} of the MACs, {after['params'] / max(before['params'], 1):.1%} of the parameters"
        )


@click.command()
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
@recipe_options("data", "runtime", "verify")
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
    from onnxprune.run.evaluation import check, open_data_for
    from onnxprune.run.pipeline import replay
    from onnxprune.types import Plan

    recipe = recipe_from(recipe_file, values)
    made = Plan.load(plan_file)
    analysis = replay(original, made)
    figures = check(analysis, made, load(pruned), open_data_for(analysis.model, recipe), recipe)
    if as_json:
        emit(figures)
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in figures.items()))
