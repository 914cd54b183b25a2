"""Commands `extract` and `join`: cut a part out of a model, and put it back."""

from __future__ import annotations

from collections.abc import Sequence
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

_TENSORS = "TENSOR,TENSOR"


@command(
    "onnxprune extract detector.onnx --outputs feat8,feat16 -o backbone.onnx",
    "onnxprune extract model.onnx --inputs feat --save-inputs head.npz --data images/  # the rest",
)
@model_argument()
@output_options("The part; MODEL.part.onnx next to the model by default.")
@click.option(
    "--inputs", multiple=True, metavar=_TENSORS, help="Inputs of the part. Default: those of MODEL."
)
@click.option(
    "--outputs",
    multiple=True,
    metavar=_TENSORS,
    help="Outputs of the part. Default: those of MODEL.",
)
@click.option(
    "--save-inputs",
    type=click.Path(),
    metavar="FILE.npz",
    help="Run MODEL on --data, and write what the part gets: calibration data for it.",
)
@recipe_options("data", "runtime", "write", without=("flip",))
@shared
def extract(
    model: str,
    output: str | None,
    overwrite: bool,
    inputs: Sequence[str],
    outputs: Sequence[str],
    save_inputs: str | None,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Write the part of MODEL that computes --outputs from --inputs, as a model of its own.

    Drop a decoder or take a backbone, prune it, and put it back with `onnxprune join`.
    """
    from onnxprune.ir import parts
    from onnxprune.ir.io import load, save
    from onnxprune.run.adapter import open_inputs
    from onnxprune.run.outputs import check_output, choose_output
    from onnxprune.run.part_check import record_inputs, write_arrays

    recipe = recipe_from(recipe_file, values)
    path = str(choose_output(output, model, ".part.onnx"))
    check_output(path, overwrite)
    whole = load(model)
    part = parts.extract(whole, _split(inputs), _split(outputs))
    samples = 0
    if save_inputs:
        arrays = record_inputs(whole, part, open_inputs(whole, recipe), recipe)
        write_arrays(save_inputs, arrays, overwrite)
        samples = max(map(len, arrays.values()))
    save(part, path, external_data=recipe.external_data, overwrite=overwrite)
    graph = part.proto.graph
    if as_json:
        emit(
            {
                "output": path,
                "inputs": [i.name for i in graph.input if i.name not in part.weights],
                "outputs": [o.name for o in graph.output],
                "nodes": [len(graph.node), len(whole.proto.graph.node)],
                "saved_samples": samples,
            }
        )
    else:
        click.echo(part.summary())
    if save_inputs:
        say(f"{samples} inputs of the part written to {save_inputs}")
    say(f"{len(graph.node)} of {len(whole.proto.graph.node)} nodes written to {path}")


@command(
    "onnxprune join model.onnx backbone.pruned.onnx -o model.pruned.onnx --data images/",
)
@click.argument("whole", metavar="WHOLE", type=click.Path())
@click.argument("part", metavar="PART", type=click.Path())
@output_options("The joined model; WHOLE.joined.onnx next to it by default.")
@recipe_options("data", "runtime", "write", "verify", without=("flip",))
@shared
def join(
    whole: str,
    part: str,
    output: str | None,
    overwrite: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Put PART, which `extract` cut out of WHOLE and you pruned, in the place of the original.

    The result is run: inside of it, the part must compute what it computes on its own.
    """
    from onnxprune.ir import parts
    from onnxprune.ir.io import load, save
    from onnxprune.run.adapter import open_inputs
    from onnxprune.run.outputs import check_output, choose_output
    from onnxprune.run.part_check import check_part

    recipe = recipe_from(recipe_file, values)
    path = str(choose_output(output, whole, ".joined.onnx", reads=[part]))
    check_output(path, overwrite)
    original, pruned = load(whole), load(part)
    joined = parts.join(original, pruned)
    check = check_part(joined, pruned, open_inputs(joined, recipe), recipe)
    save(joined, path, external_data=recipe.external_data, overwrite=overwrite)
    if as_json:
        emit(
            {
                "output": path,
                "bytes": [original.size_bytes(), joined.size_bytes()],
                "samples": check.samples,
                "difference": check.difference,
            }
        )
    else:
        before, after = original.size_bytes(), joined.size_bytes()
        click.echo(
            f"weights     {before:,} -> {after:,} bytes ({100 * after / (before or 1):.1f} %)"
        )
        click.echo(
            f"verified    the part computes the same inside and outside on {check.samples} inputs: "
            f"difference {check.difference:.2g}"
        )
    say(f"written to {path}")


def _split(values: Sequence[str]) -> list[str]:
    """Return the names in options that may be repeated, or hold several separated by commas."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]
