"""handoff: a folder that runs where onnxprune is not; and what such folders report."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from onnxprune.cli.common import emit, model_argument, recipe_from, recipe_options, say, shared

if TYPE_CHECKING:
    from onnxprune.deploy.handoff import Collected, HandoffBundle

JETSON_PRECISIONS = {"f32": "fp32", "f16": "fp16", "int8": "int8"}
SHOWN = 12  # checks of one severity that are printed; checks.json has all


@click.command()
@model_argument()
@click.argument("pruned", required=False, type=click.Path())
@click.option(
    "--to",
    required=True,
    metavar="TARGET",
    help="jetson, hls4ml, nngen, finn, vitis-ai, gemmini or vela.",
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
@recipe_options("data", "runtime")
@shared
def handoff(
    model: str,
    pruned: str | None,
    to: str,
    output: str | None,
    overwrite: bool,
    options: tuple[str, ...],
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Write a deployment bundle: models, run script, constraint files, compatibility checks.

    MODEL is the original; PRUNED, if given, is included for comparison, and with --data, inputs.
    """
    from onnxprune.deploy.handoff import handoff as write
    from onnxprune.ir.io import load
    from onnxprune.run.parsers import mapping, text

    recipe = recipe_from(recipe_file, values)
    original = load(model)
    samples = None
    if recipe.data:
        samples = _samples(original, recipe)
    made = write(
        original,
        load(pruned) if pruned else None,
        to,
        output or f"handoff-{to}",
        shapes=recipe.shape,
        options=mapping(text)(options),
        samples=samples,
        overwrite=overwrite,
    )
    if as_json:
        emit(
            {
                "folder": str(made.folder),
                "target": made.target,
                "checks": {n: made.count(n) for n in made.checks},
                "files": list(made.files),
            }
        )
        return
    click.echo(_page(made))
    say(
        f"written to {made.folder}; next, on the target's machine: python3 {made.folder / 'run.py'}"
    )


def show(found: Collected, as_json: bool) -> None:
    """Print what a bundle's run reported."""
    from onnxprune.report.terminal import columns

    if as_json:
        emit(found.as_dict())
        return
    names = list(found.results)
    figures = list(dict.fromkeys(f for r in found.results.values() for f in r.figures))
    rows: list[tuple[str, ...]] = [("figure", *names, "original / pruned")]
    for figure in figures:
        values = (found.results[n].figures.get(figure) for n in names)
        rows.append(
            (
                figure,
                *("" if v is None else f"{v:.6g}" for v in values),
                f"{found.ratios[figure]:.2f}x" if figure in found.ratios else "",
            )
        )
    click.echo(columns(rows, left=1))
    for name, result in found.results.items():
        if result.layers:
            slowest = sorted(result.layers.items(), key=lambda item: -item[1])[:SHOWN]
            click.echo(
                "\n"
                + columns(
                    [
                        (f"{name}: slowest layers", result.layer_unit),
                        *((n, f"{v:.6g}") for n, v in slowest),
                    ],
                    left=1,
                )
            )
        for note in result.notes:
            say(f"note: {name}: {note}")


def by_ssh(models: tuple[str, ...], host: str, recipe: Any) -> Collected:
    """Write a Jetson bundle of one or two models, run it on a host, read the results; shapes, precision and seconds are the recipe's."""
    from onnxprune.deploy.handoff import handoff as write
    from onnxprune.deploy.handoff import round_trip
    from onnxprune.errors import UsageError
    from onnxprune.ir.io import load

    if not 1 <= len(models) <= 2:
        raise UsageError(
            "ssh-models",
            f"--ssh takes one or two models, the original and the pruned one, not {len(models)}",
        )
    if recipe.precision not in JETSON_PRECISIONS:
        raise UsageError(
            "ssh-precision",
            f"--ssh supports {', '.join(JETSON_PRECISIONS)}, not {recipe.precision}: change --precision",
        )
    options = {"precision": JETSON_PRECISIONS[recipe.precision], "duration": f"{recipe.seconds:g}"}
    first, second = load(models[0]), load(models[1]) if len(models) == 2 else None
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as scratch:
        place = Path(scratch) / "bundle"
        write(first, second, "jetson", place, shapes=recipe.shape, options=options)
        return round_trip(place, host)


def _samples(model: Any, recipe: Any) -> dict[str, Any]:
    """Inputs of the data source, joined along the batch axis."""
    from onnxprune.run.evaluation import open_data_for

    batches = list(open_data_for(model, recipe).batches(1))
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def _page(made: HandoffBundle) -> str:
    """What the target says, worst first."""
    lines = []
    for name, checks in made.checks.items():
        counts = made.count(name)
        lines.append(
            f"{name}: "
            + (", ".join(f"{n} {s}" for s, n in counts.items() if n) or "no problem found")
        )
        for severity in counts:
            found = [c for c in checks if c.severity == severity]
            lines += [f"  {severity:11} {c.node or 'model'}: {c.text}" for c in found[:SHOWN]]
            lines += (
                [f"  {severity:11} ... and {len(found) - SHOWN} more in checks.json"]
                if len(found) > SHOWN
                else []
            )
    return "\n".join(lines)
