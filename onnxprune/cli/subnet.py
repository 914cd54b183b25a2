"""Command subnet: convert between plans and fix_subnet.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnxprune.cli.command import command
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


@command(
    "onnxprune subnet model.onnx plan.json -o fix_subnet.json  # counts of a plan",
)
@model_argument()
@click.argument("file", metavar="FILE", type=click.Path())
@output_options("File to write the result to. Default: stdout.")
@recipe_options("analyze", "data", "runtime", "score")
@shared
def subnet(
    model: str,
    file: str,
    output: str | None,
    overwrite: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Convert a plan of MODEL to fix_subnet.json (kept counts), or such a file to a plan.

    FILE is the plan or the fix_subnet.json. The channels of the plan are chosen by --criterion.
    """
    from onnxprune.criteria import CRITERIA
    from onnxprune.files import write_json
    from onnxprune.run.adapter import analyze_for, analyze_for_plan, context_for, open_data_for
    from onnxprune.run.outputs import check_not_read, check_output
    from onnxprune.search.subnet import from_subnet, to_subnet
    from onnxprune.types import Plan

    recipe = recipe_from(recipe_file, values)
    if output:
        check_not_read(output, [model, file])
        check_output(output, overwrite)
    content = _read(file)
    result: dict[str, Any]
    # only a plan has this key; a fix_subnet.json maps names of units to counts
    if "groups" in content:
        plan = Plan.from_json(content)
        result = dict(to_subnet(analyze_for_plan(model, plan), plan))
    else:
        analysis = analyze_for(model, recipe)
        # without random inputs, so that a criterion that needs data asks for it
        data = open_data_for(analysis.model, recipe) if recipe.data else None
        context = context_for(analysis, data, recipe)
        criterion = "l2" if recipe.criterion == "auto" else recipe.criterion
        result = from_subnet(analysis, content, CRITERIA.get(criterion)(context)).to_json()
    if output:
        write_json(output, result)
        say(f"written to {output}")
    if as_json or not output:
        emit(result)


def _read(path: str) -> dict[str, Any]:
    """Return the object in a JSON file; UsageError if it is not readable or not an object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError("plan-unreadable", f"cannot read {path}: {problem.strerror}") from problem
    except (ValueError, RecursionError) as problem:
        raise UsageError("plan-invalid", f"{path} is not JSON: {problem}") from problem
    if not isinstance(content, dict):
        raise UsageError(
            "plan-invalid",
            f"{path} holds {type(content).__name__}, not the object of a plan or fix_subnet.json",
        )
    return content
