"""Command report: show the report of a finished run."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli.command import command
from onnxprune.cli.common import emit, say, shared
from onnxprune.errors import DataError, UsageError

if TYPE_CHECKING:
    from onnxprune.report.data import Report


@command(
    "onnxprune report model.pruned.run  # write the page again and print the summary",
)
@click.argument("run_dir", type=click.Path())
@click.option(
    "--sensitivities",
    type=click.Path(),
    metavar="FILE",
    help="Add the measurements that `onnxprune sensitivity` wrote to FILE to the report.",
)
@shared
def report(run_dir: str, sensitivities: str | None, as_json: bool) -> None:
    """Show the report of RUN_DIR (or a report.json), and write report.html next to report.json."""
    from onnxprune.report import html, terminal
    from onnxprune.report.data import Report

    result = Report.load(run_dir)
    if sensitivities:
        result = _add_sensitivities(result, run_dir, sensitivities)
    page = html.write(result, Path(run_dir) if os.path.isdir(run_dir) else Path(run_dir).parent)
    if as_json:
        emit(result.to_json())
        return
    for stage in result.stages:
        click.echo(f"{stage.name:<12}{stage.seconds:8.2f} s  {stage.detail}".rstrip())
    terminal.write_summary(result, page, sys.stdout)
    if result.warnings:
        say(terminal.warnings(result))


def _add_sensitivities(report: Report, run_dir: str, file: str) -> Report:
    """Return the report with the measurements of a sweep, after writing it back to its file.

    Raises
    ------
    DataError
        The file of the sweep does not exist.
    UsageError
        The sweep is of another model.
    """
    from onnxprune.files import json_lines, write_json
    from onnxprune.report.collect import measured_rows

    if not os.path.isfile(file):
        raise DataError(
            "sensitivities-missing",
            f"no sensitivities at {file}; measure them: onnxprune sensitivity MODEL -o {file}",
        )
    measured = measured_rows(json_lines(file))
    foreign = sorted(measured.keys() - {group.name for group in report.groups})
    if foreign:
        raise UsageError(
            "sensitivities-mixed",
            f"{file} has group {foreign[0]!r}, which the model of this report does not have; "
            "measure the sensitivities of that model",
        )
    report = replace(report, measured=measured)
    path = Path(run_dir)
    write_json(path / "report.json" if path.is_dir() else path, report.to_json())
    return report
