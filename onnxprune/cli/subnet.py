"""subnet: plans as fix_subnet.json, and back."""

from __future__ import annotations

import json
from pathlib import Path
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
from onnxprune.errors import UsageError


@click.command()
@model_argument()
@click.argument("file", metavar="FILE", type=click.Path())
@output_options("Where the result goes; stdout by default.")
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
    """Turn a plan of MODEL into fix_subnet.json (kept counts), or such a file into a plan, its channels chosen by --criterion."""
    from onnxprune.criteria import CRITERIA
    from onnxprune.criteria.base import Context
    from onnxprune.files import write_json
    from onnxprune.run.evaluation import open_data_for
    from onnxprune.run.outputs import check_output
    from onnxprune.run.pipeline import analyzed, replay
    from onnxprune.search.subnet import from_subnet, to_subnet
    from onnxprune.types import Plan

    recipe = recipe_from(recipe_file, values)
    if output:
        check_output(output, overwrite)
    read = _read(file)
    if "groups" in read:
        plan = Plan.from_json(read)
        found: dict[str, Any] = to_subnet(replay(model, plan), plan)
    else:
        analysis = analyzed(model, recipe)
        data = open_data_for(analysis.model, recipe) if recipe.data else None
        context = Context(analysis, data, recipe.seed, recipe.threads, recipe.batch_size)
        found = from_subnet(
            analysis,
            read,
            CRITERIA.get("l2" if recipe.criterion == "auto" else recipe.criterion)(context),
        ).to_json()
    if output:
        write_json(output, found)
        say(f"written to {output}")
    if as_json or not output:
        emit(found)


def _read(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError("plan-unreadable", f"cannot read {path}: {problem.strerror}") from problem
    except (ValueError, RecursionError) as problem:
        raise UsageError("plan-invalid", f"{path} is not JSON: {problem}") from problem
    if not isinstance(found, dict):
        raise UsageError(
            "plan-invalid", f"{path} is neither a plan nor a fix_subnet.json: it holds no table"
        )
    return found
