"""Commands optimize and demo: a complete run."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import Any

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
from onnxprune.cli.progress import note_warnings, show_progress
from onnxprune.errors import UsageError
from onnxprune.run.recipe import Recipe

DEMO_TARGET, DEMO_MULTIPLE, DEMO_CONTROLS = "macs=12%", 8, 3
EXPLANATION = """\
onnxprune optimize MODEL makes an exported ONNX model smaller and faster, without a training
framework.

It groups coupled channels, scores them, removes the least important ones from the weights,
verifies the result against the masked original, refits the remaining weights, measures both models,
and writes one with the same inputs and outputs.

  onnxprune optimize model.onnx --data images/    half of the MACs, calibrated on a folder of images
  onnxprune optimize model.onnx -o small.onnx --target params=2x --target latency.onnxruntime=1.5x
  onnxprune inspect model.onnx                    what can be pruned, and why the rest cannot
  onnxprune demo                                  prune a small network that ships with onnxprune

All options: onnxprune optimize --help-all
"""


@command(
    "onnxprune optimize model.onnx --data images/  # half of the MACs",
    "onnxprune optimize model.onnx -o small.onnx --target params=2x  # another goal, another name",
    "onnxprune optimize model.onnx --data x.npz --max-divergence 0.05  # outputs stay close",
)
@model_argument(required=False)
@output_options("Path of the pruned model. Default: MODEL.pruned.onnx next to MODEL.")
@click.option(
    "--run-dir",
    type=click.Path(),
    metavar="DIR",
    help="Folder for plan, report and journal; finished stages in it are reused. "
    "Default: OUT with .run for .onnx.",
)
@recipe_options()
@quiet_option
@shared
def optimize(
    model: str | None,
    output: str | None,
    overwrite: bool,
    run_dir: str | None,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Prune MODEL: analyze, score, plan, cut, verify, repair, measure, report."""
    if model is None:
        # a bare command explains itself; options without a model are an error
        if output or run_dir or recipe_file or any(v not in (None, ()) for v in values.values()):
            raise UsageError(
                "usage", "argument MODEL is missing: onnxprune optimize MODEL [options]"
            )
        click.echo(EXPLANATION, nl=False)
        return
    _run(model, output, recipe_from(recipe_file, values), run_dir, overwrite, as_json)


@command(
    "onnxprune demo  # prune a network of the package, compare with random channels",
    "onnxprune demo --export digits  # write its model and data into a folder, to try commands on",
)
@output_options("Path of the pruned model. Default: onnxprune-demo.onnx.")
@click.option(
    "--export",
    "folder",
    type=click.Path(),
    metavar="FOLDER",
    help="Only write model.onnx, images/, calibration.npz and evaluation.npz into FOLDER.",
)
@recipe_options()
@quiet_option
@shared
def demo(
    output: str | None,
    overwrite: bool,
    folder: str | None,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Prune a small trained network (scikit-learn's digits) that ships with onnxprune."""
    from onnxprune.demo import files

    if folder is not None:
        _export(folder, output, overwrite, as_json)
        return
    model, calibration, evaluation = map(str, files())
    values["data"] = values["data"] or calibration
    # the demo has labels, with which "auto" would build a model for each of several candidates
    values["candidate"] = values["candidate"] or ("none",)
    if not any(values[name] for name in ("target", "ratio", "max_divergence")) and not recipe_file:
        # easier cuts of so wide a network succeed with any channels, if the rest is refitted
        values |= {"target": (DEMO_TARGET,), "round_to": values["round_to"] or DEMO_MULTIPLE}
    # several random models, since one may be lucky
    if values["control"] is None:
        values["control"] = DEMO_CONTROLS
    if not values["metric"]:
        values |= {"metric": ("top1",), "labeled": evaluation}
    recipe = recipe_from(recipe_file, values)
    _run(model, output or "onnxprune-demo.onnx", recipe, None, overwrite, as_json)


def _export(folder: str, output: str | None, overwrite: bool, as_json: bool) -> None:
    """Write the demo's files into a folder, and print the next command."""
    from onnxprune.demo.export import write_files

    if output is not None:
        raise UsageError("usage", "--export writes no pruned model: omit -o")
    written = write_files(folder, overwrite)
    if as_json:
        emit([str(path) for path in written])
        return
    for path in written:
        click.echo(f"written to {path}")
    model, images, *_ = written
    click.echo(f"next: onnxprune optimize {quote(str(model))} --data {quote(str(images))}")


def _run(
    model: str,
    output: str | None,
    recipe: Recipe,
    run_dir: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Run the pipeline with progress on stderr, and print the summary or the report as JSON."""
    from onnxprune.report import terminal
    from onnxprune.report.html import PAGE
    from onnxprune.run.outputs import choose_output, default_run_dir
    from onnxprune.run.pipeline import optimize as run

    # before the run, because the folder of the report is named after it
    output = str(choose_output(output, model))
    page = Path(run_dir or default_run_dir(output)) / PAGE
    shown: set[str] = set()
    with show_progress() as progress:
        result = run(
            model,
            output,
            recipe=recipe,
            run_dir=run_dir,
            overwrite=overwrite,
            on_event=note_warnings(progress, shown),
        )
    report = result.report
    if as_json:
        emit(report.to_json())
    else:
        terminal.write_summary(report, page, sys.stdout)
    warnings = terminal.warnings(report, None if as_json else page, shown)
    if warnings:
        say(warnings)
