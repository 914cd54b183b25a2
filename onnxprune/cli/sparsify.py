"""Command `sparsify`: set single weights to zero. Shapes do not change: this is not pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.command import command
from onnxprune.cli.common import (
    emit,
    model_argument,
    output_options,
    quiet_option,
    recipe_from,
    recipe_options,
    say,
    shared,
)
from onnxprune.cli.progress import show_progress
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.data.dataset import Data
    from onnxprune.ir.io import Model
    from onnxprune.run.recipe import Recipe
    from onnxprune.sparsify.report import Sparsity
    from onnxprune.sparsify.weights import Sparsified

DEFAULT_AMOUNT = 0.5


@command(
    "onnxprune sparsify model.onnx --amount 0.5 --data images/  # zeros in half of the weights",
)
@model_argument()
@output_options("Sparse model; MODEL.sparse.onnx next to the model by default.")
@click.option(
    "--amount",
    type=float,
    metavar="SHARE",
    help=f"Share of the weights that become zero.  [default: {DEFAULT_AMOUNT}]",
)
@click.option(
    "--method",
    "sparsity_method",
    default="auto",
    metavar="NAME",
    help="magnitude, or with --data activation, obs or admm; "
    "auto = admm with --data, else magnitude.",
)
@click.option(
    "--scope",
    default="auto",
    metavar="NAME",
    help="Where the share applies: balanced (needs --data: where the outputs change least), "
    "tensor, output, global, or a pattern N:M such as 2:4; "
    "auto = balanced with --data, else tensor.",
)
@click.option(
    "--ops",
    default="Conv",
    show_default=True,
    metavar="OP,OP",
    help="Operators whose weights become sparse: Conv, ConvTranspose, Gemm, MatMul.",
)
@click.option(
    "--refit/--no-refit",
    default=None,
    help="Solve for the remaining weights by least squares; by default with --data.",
)
@click.option("--report-only", is_flag=True, help="Print the sparsity of MODEL and write nothing.")
@recipe_options("data", "runtime", "measure", "write", also=("device",))
@quiet_option
@shared
def sparsify(
    model: str,
    output: str | None,
    overwrite: bool,
    amount: float | None,
    sparsity_method: str,
    scope: str,
    ops: str,
    refit: bool | None,
    report_only: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Set the least important weights of MODEL to zero.

    Memory and the latency of dense engines stay the same; --engine measures both models.
    """
    from onnxprune.ir.io import load, save
    from onnxprune.run.outputs import check_output, choose_output
    from onnxprune.sparsify.report import sparsity
    from onnxprune.sparsify.weights import SparsifySettings
    from onnxprune.sparsify.weights import sparsify as run

    source = load(model)
    if report_only:
        _report(sparsity(source), {}, as_json)
        return
    # N of M weights are a share already
    if amount is not None and ":" in scope:
        raise UsageError(
            "sparsity-amount",
            f"--amount {amount:g} contradicts --scope {scope}, which sets the share itself: "
            "pass only one",
        )
    recipe = recipe_from(recipe_file, values)
    path = str(choose_output(output, model, ".sparse.onnx"))
    check_output(path, overwrite)
    settings = SparsifySettings(
        # no default for click: a pattern excludes an amount only if one is given
        amount=DEFAULT_AMOUNT if amount is None else amount,
        method=sparsity_method,
        scope=scope,
        ops=tuple(ops.split(",")),
        refit=refit,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        threads=recipe.compute_threads,
    )
    with show_progress() as progress:
        result = run(source, settings, _open_inputs(source, recipe), progress)
    # before the measurement, which takes long and may fail
    save(result.model, path, external_data=recipe.external_data, overwrite=overwrite)
    extra: dict[str, Any] = {"output": path, "not_refitted": list(result.not_refitted)}
    # only on request: a recipe has an engine by default
    if values.get("engine") and recipe.engine:
        extra["timing"] = _measure_latency(source, result.model, recipe)
    _report(result.report, extra, as_json)
    say(f"written to {path}")
    _warn_of_pattern(result, scope, recipe)


def _warn_of_pattern(result: Sparsified, scope: str, recipe: Recipe) -> None:
    """Print why a pattern such as 2:4 will not save time."""
    from onnxprune.engines.devices import get_device
    from onnxprune.sparsify.tensor_cores import pattern_warnings

    device = None if recipe.device is None else get_device(recipe.device)
    if ":" not in scope:
        return
    for warning in pattern_warnings(result.model, result.report.tensors, scope, device):
        say(f"warning: {warning}")


def _open_inputs(model: Model, recipe: Recipe) -> Data | None:
    """Open the calibration inputs, with mirrored copies for --flip; None without --data."""
    from onnxprune.data.dataset import flips
    from onnxprune.run.adapter import open_data_for

    # no random inputs instead: without data, magnitudes decide
    if recipe.data is None:
        return None
    data = open_data_for(model, recipe)
    return flips(data) if recipe.flip else data


def _measure_latency(source: Model, sparse: Model, recipe: Recipe) -> dict[str, Any]:
    """Time both models side by side."""
    from onnxprune.run.adapter import open_data_for
    from onnxprune.run.planning import measure_models

    feeds = next(open_data_for(source, recipe).batches(1))
    models = {"original": source, "pruned": sparse}
    return measure_models(models, recipe, feeds, lambda text, left_s: say(text))


def _report(report: Sparsity, extra: Mapping[str, Any], as_json: bool) -> None:
    """Print the zeros per tensor, and the timing if there is one."""
    from onnxprune.report.terminal import columns

    if as_json:
        emit({**report.as_dict(), **extra})
        return
    table = [("tensor", "op", "weights", "zeros", "share", "dead outputs")]
    for row in report.tensors:
        share = row.zeros / max(row.size, 1)
        dead = f"{row.dead_outputs} of {row.outputs}"
        table.append(
            (row.tensor, row.op, f"{row.size:,d}", f"{row.zeros:,d}", f"{share:.1%}", dead)
        )
    click.echo(columns(table, left=2))
    click.echo(
        f"\nzeros: {report.of_weights:.1%} of {report.weights:,d} weights, "
        f"{report.of_params:.1%} of {report.params:,d} parameters"
    )
    for engine, rows in extra.get("timing", {}).get("ratios", {}).items():
        for row in rows:
            click.echo(
                f"{engine}: {row['median']:.2f}x the speed of the dense model "
                f"({row['low']:.2f} to {row['high']:.2f})"
            )
    if extra.get("not_refitted"):
        click.echo(f"not refitted (too many inputs): {', '.join(extra['not_refitted'])}")
    click.echo(report.note)
