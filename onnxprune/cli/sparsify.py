"""sparsify: zeros inside the weights, which is not pruning."""

from __future__ import annotations

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
    from onnxprune.sparsify.report import Sparsity


@click.command()
@model_argument()
@output_options("The sparse model; MODEL.sparse.onnx beside the model by default.")
@click.option(
    "--amount",
    type=float,
    metavar="SHARE",
    help="Share of the weights that become zero.  [default: 0.5]",
)
@click.option(
    "--method",
    default="auto",
    metavar="NAME",
    help="magnitude, or with --data activation, obs or admm; auto = admm with --data, magnitude without.",
)
@click.option(
    "--scope",
    default="auto",
    metavar="NAME",
    help="Where the share is taken: balanced (with --data: where the outputs change least), tensor, output, global, or a pattern N:M such as 2:4; "
    "auto = balanced with --data, tensor without.",
)
@click.option(
    "--ops",
    default="Conv",
    metavar="OP,OP",
    help="Whose weights: Conv, ConvTranspose, Gemm, MatMul.  [default: Conv]",
)
@click.option(
    "--refit/--no-refit",
    default=None,
    help="Solve for the weights that are left; by default with --data.",
)
@click.option(
    "--report-only", is_flag=True, help="Only say how sparse MODEL is; nothing is written."
)
@recipe_options("data", "runtime", "measure", "write")
@shared
def sparsify(
    model: str,
    output: str | None,
    overwrite: bool,
    amount: float | None,
    method: str,
    scope: str,
    ops: str,
    refit: bool | None,
    report_only: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Set the least important weights of MODEL to zero. Its size in memory and its time on dense engines stay; both are measured where --engine is given."""
    from onnxprune.ir.io import load, save
    from onnxprune.report.terminal import Progress
    from onnxprune.run.evaluation import open_data_for
    from onnxprune.run.outputs import check_output
    from onnxprune.sparsify.report import sparsity
    from onnxprune.sparsify.weights import Settings
    from onnxprune.sparsify.weights import sparsify as run

    source = load(model)
    if report_only:
        _show(sparsity(source), {}, as_json)
        return
    if amount is not None and ":" in scope:
        raise UsageError(
            "sparsity-amount", f"scope {scope} says itself how many weights go; leave out --amount"
        )
    recipe = recipe_from(recipe_file, values)
    place = output or str(Path(model).with_suffix(".sparse.onnx"))
    check_output(place, overwrite)
    settings = Settings(
        0.5 if amount is None else amount,
        method,
        scope,
        tuple(ops.split(",")),
        refit,
        recipe.batch_size,
        recipe.seed,
        recipe.threads,
    )
    data = open_data_for(source, recipe) if recipe.data else None
    with Progress() as progress:
        found = run(source, settings, data, progress)
    save(found.model, place, external_data=recipe.external_data, overwrite=overwrite)
    extra: dict[str, Any] = {"output": place, "not_refitted": list(found.not_refitted)}
    if values.get("engine") and recipe.engine:
        extra["timing"] = _timed(source, found.model, recipe)
    _show(found.report, extra, as_json)
    say(f"written to {place}")


def _timed(source: Model, sparse: Model, recipe: Recipe) -> dict[str, Any]:
    """Both models side by side."""
    from onnxprune.run.evaluation import open_data_for
    from onnxprune.run.planning import measured

    return measured(
        source,
        sparse,
        recipe,
        next(open_data_for(source, recipe).batches(1)),
        lambda text, left_s: say(text),
    )


def _show(report: Sparsity, extra: dict[str, Any], as_json: bool) -> None:
    from onnxprune.report.terminal import columns

    if as_json:
        emit({**report.as_dict(), **extra})
        return
    table = [("tensor", "op", "weights", "zeros", "share", "dead outputs")]
    for t in report.tensors:
        table.append(
            (
                t.tensor,
                t.op,
                f"{t.size:,d}",
                f"{t.zeros:,d}",
                f"{t.zeros / max(t.size, 1):.1%}",
                f"{t.dead_outputs} of {t.outputs}",
            )
        )
    click.echo(columns(table, left=2))
    click.echo(
        f"\nzeros: {report.of_weights:.1%} of {report.weights:,d} weights, {report.of_params:.1%} of {report.params:,d} parameters"
    )
    for engine, rows in extra.get("timing", {}).get("ratios", {}).items():
        for row in rows:
            click.echo(
                f"{engine}: {row['median']:.2f}x the speed of the dense model ({row['low']:.2f} to {row['high']:.2f})"
            )
    if extra.get("not_refitted"):
        click.echo(f"not refitted, too many inputs: {', '.join(extra['not_refitted'])}")
    click.echo(report.note)
