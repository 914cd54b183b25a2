"""Command `rewrite`: replace activations that an accelerator does not support."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
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

_REPLACED = "leakyrelu,silu,hardswish,gelu"


@command(
    "onnxprune rewrite model.onnx --activation Relu  # for accelerators without the others",
)
@model_argument()
@output_options("Rewritten model; MODEL.rewritten.onnx next to the model by default.")
@click.option(
    "--activation",
    required=True,
    metavar="NAME",
    help="Replacement: relu, relu6, hardswish or leakyrelu.",
)
@click.option(
    "--replace",
    default=_REPLACED,
    show_default=True,
    metavar="NAME,NAME",
    help="Activations to replace: leakyrelu, silu, hardswish, gelu, prelu, elu, mish.",
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
    """Replace activations of MODEL that an accelerator does not support.

    The network computes something else afterwards: fine-tune it with `onnxprune tune`.
    """
    from onnxprune.ir.io import load, save
    from onnxprune.run.outputs import check_output, choose_output
    from onnxprune.tune.rewrite import rewrite_activations

    recipe = recipe_from(recipe_file, values)
    path = str(choose_output(output, model, ".rewritten.onnx"))
    check_output(path, overwrite)
    # the default list names activations that can be the replacement as well
    sources = [name.strip() for name in replace.split(",") if name.strip() != activation]
    result = rewrite_activations(load(model), activation, sources)
    save(result.model, path, external_data=recipe.external_data, overwrite=overwrite)
    if as_json:
        emit(
            {
                "output": path,
                "activation": activation,
                "replaced": dict(result.replaced),
                "left": dict(result.left),
            }
        )
    else:
        _print_counts(result.replaced, f"replaced by {activation}")
        _print_counts(result.left, "kept (not listed in --replace)")
    command = shlex.join(["onnxprune", "tune", path, "--teacher", model])
    say(f"written to {path}; fine-tune it: {command} --data ...")


def _print_counts(counts: Mapping[str, int], outcome: str) -> None:
    """Print one line per kind of activation."""
    for kind, count in counts.items():
        click.echo(f"{kind}: {count} {outcome}")
