"""Command handoff: write deployment bundles, and show the results of their runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from onnxprune.cli.command import command
from onnxprune.cli.common import (
    emit,
    ignored_options,
    model_argument,
    recipe_from,
    recipe_options,
    say,
    shared,
)
from onnxprune.errors import UsageError
from onnxprune.scratch import Scratch

if TYPE_CHECKING:
    from onnxprune.deploy.handoff import Collected, HandoffBundle
    from onnxprune.ir.io import Model
    from onnxprune.run.recipe import Recipe

# as recipes name them -> as the scripts of a bundle name them
JETSON_PRECISIONS = {"f32": "fp32", "f16": "fp16", "int8": "int8"}
MOST_SHOWN = 12  # checks per severity, layers per model; checks.json has all


@command(
    "onnxprune handoff model.onnx model.pruned.onnx --to jetson -o bundle/",
)
@model_argument()
@click.argument("pruned", required=False, type=click.Path())
@click.option(
    "--to",
    required=True,
    metavar="TARGET",
    help="jetson, remote (any machine with Python), hls4ml, nngen, finn, vitis-ai, gemmini, vela, "
    "or a device (onnxprune devices).",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FOLDER",
    help="Folder of the bundle. Default: handoff-TARGET.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the target; README.txt in the bundle lists them.",
)
@click.option(
    "--layers",
    is_flag=True,
    help="Also time each layer at several widths (jetson, remote) for latency.table:FILE.",
)
@recipe_options("data", "runtime", without=("flip", "batch_size", "threads"))
@ignored_options("flip", "batch_size", "threads")
@shared
def handoff(
    model: str,
    pruned: str | None,
    to: str,
    output: str | None,
    overwrite: bool,
    options: tuple[str, ...],
    layers: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Write a deployment bundle: models, run script, constraint files, compatibility checks.

    MODEL is the original; PRUNED, if given, is included for comparison, and with --data, inputs.
    """
    from onnxprune.deploy.handoff import handoff as write_bundle
    from onnxprune.ir.io import load
    from onnxprune.run.parsers import mapping, text

    recipe = recipe_from(recipe_file, values)
    original = load(model)
    target, preset = find_target(to)
    bundle = write_bundle(
        original,
        load(pruned) if pruned else None,
        target,
        output or f"handoff-{to}",
        shapes=recipe.shape,
        options={**preset, **mapping(text)(options)},
        samples=_read_samples(original, recipe) if recipe.data else None,
        overwrite=overwrite,
        layers=_choose_multiple(to) if layers else 0,
    )
    if as_json:
        emit(
            {
                "folder": str(bundle.folder),
                "target": bundle.target,
                "checks": {name: bundle.count(name) for name in bundle.checks},
                "files": list(bundle.files),
            }
        )
        return
    click.echo(_format_checks(bundle))
    script = bundle.folder / "run.py"
    say(f"written to {bundle.folder}; next, on the target's machine: python3 {script}")


def _choose_multiple(name: str) -> int:
    """Return the multiple of the widths that layers are timed at."""
    from onnxprune.deploy.layers import MULTIPLE
    from onnxprune.engines.devices import DEVICES

    device = DEVICES.get(name)
    return MULTIPLE if device is None else device.channel_multiple(device.precision)


def find_target(name: str) -> tuple[str, dict[str, str]]:
    """Return the target of a bundle and options for it, given its name or that of a device.

    Raises
    ------
    UsageError
        The device has no target.
    """
    from onnxprune.engines.devices import DEVICES

    device = DEVICES.get(name)
    if device is None:
        return name, {}
    if not device.handoff:
        raise UsageError(
            "device-handoff",
            f"there is no bundle for {device.title}: compile the model with its vendor's tools",
        )
    return device.handoff, {"dla": "0"} if name.endswith("-dla") else {}


def show_results(results: Collected, as_json: bool) -> None:
    """Print what the run of a bundle reported."""
    if as_json:
        emit(results.as_dict())
        return
    click.echo(_format_figures(results))
    for name, result in results.results.items():
        if result.layers:
            click.echo(f"\n{_format_slowest(name, result.layers, result.layer_unit)}")
        for note in result.notes:
            say(f"note: {name}: {note}")


def run_over_ssh(models: tuple[str, ...], host: str, recipe: Recipe) -> Collected:
    """Write a Jetson bundle of one or two models, run it on a host, and read the results.

    Raises
    ------
    UsageError
        There are more models, or the Jetson scripts do not support the precision.
    """
    from onnxprune.deploy.handoff import handoff as write_bundle
    from onnxprune.deploy.handoff import round_trip
    from onnxprune.ir.io import load

    # a bundle holds the original and at most one other model
    if not 1 <= len(models) <= 2:
        raise UsageError(
            "ssh-models",
            f"--ssh takes one or two models, the original and the pruned one, not {len(models)}",
        )
    if recipe.precision not in JETSON_PRECISIONS:
        raise UsageError(
            "ssh-precision",
            f"--ssh supports {', '.join(JETSON_PRECISIONS)}, not {recipe.precision}: "
            "change --precision",
        )
    options = {"precision": JETSON_PRECISIONS[recipe.precision], "duration": f"{recipe.seconds:g}"}
    original = load(models[0])
    pruned = load(models[1]) if len(models) == 2 else None
    with Scratch() as scratch:
        # inside of the temporary folder: a bundle does not replace one that exists
        folder = Path(scratch) / "bundle"
        write_bundle(original, pruned, "jetson", folder, shapes=recipe.shape, options=options)
        return round_trip(folder, host)


def _read_samples(model: Model, recipe: Recipe) -> dict[str, np.ndarray]:
    """Return the recipe's inputs, joined along the batch axis."""
    from onnxprune.run.adapter import open_data_for

    batches = list(open_data_for(model, recipe).batches(1))
    samples = {}
    for name in batches[0]:
        samples[name] = np.concatenate([batch[name] for batch in batches])
    return samples


def _format_figures(results: Collected) -> str:
    """Return the figures of the models with their ratios."""
    from onnxprune.report.text import columns

    models = list(results.results)
    # in the order of the results; models may lack some figures
    figures = dict.fromkeys(name for r in results.results.values() for name in r.figures)
    rows: list[tuple[str, ...]] = [("figure", *models, "original / pruned")]
    for figure in figures:
        values = [results.results[model].figures.get(figure) for model in models]
        cells = ["" if value is None else f"{value:.6g}" for value in values]
        ratio = f"{results.ratios[figure]:.2f}x" if figure in results.ratios else ""
        rows.append((figure, *cells, ratio))
    return columns(rows)


def _format_slowest(model: str, layers: Mapping[str, float], unit: str) -> str:
    """Return the slowest layers of a model."""
    from onnxprune.report.text import columns

    slowest = sorted(layers.items(), key=lambda item: -item[1])[:MOST_SHOWN]
    rows = [(layer, f"{value:.6g}") for layer, value in slowest]
    return columns([(f"{model}: slowest layers", unit), *rows])


def _format_checks(bundle: HandoffBundle) -> str:
    """Return the compatibility checks of each model, the worst first."""
    lines = []
    for model, checks in bundle.checks.items():
        counts = bundle.count(model)
        totals = ", ".join(f"{count} {severity}" for severity, count in counts.items() if count)
        lines.append(f"{model}: {totals or 'no problem found'}")
        for severity in counts:
            members = [check for check in checks if check.severity == severity]
            for check in members[:MOST_SHOWN]:
                lines.append(f"  {severity:11} {check.node or 'model'}: {check.text}")
            if len(members) > MOST_SHOWN:
                more = len(members) - MOST_SHOWN
                lines.append(f"  {severity:11} ... and {more} more in checks.json")
    return "\n".join(lines)
