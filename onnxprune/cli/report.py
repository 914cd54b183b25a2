"""report: the report of a run that is over."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli.common import emit, say, shared
from onnxprune.errors import DataError, UsageError

if TYPE_CHECKING:
    from onnxprune.report.data import Report


@click.command()
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

    found = Report.load(run_dir)
    if sensitivities:
        found = _with_sensitivities(found, run_dir, sensitivities)
    page = html.write(found, Path(run_dir) if os.path.isdir(run_dir) else Path(run_dir).parent)
    if as_json:
        emit(found.to_json())
        return
    for stage in found.stages:
        click.echo(f"{stage.name:<12}{stage.seconds:8.2f} s  {stage.detail}".rstrip())
    click.echo(terminal.summary(found, page))
    if found.warnings:
        say(terminal.warnings(found))


def _with_sensitivities(report: Report, run_dir: str, file: str) -> Report:
    """The report with the figures of a sweep, written back to its file."""
    from onnxprune.files import write_json
    from onnxprune.report.collect import measured_rows
    from onnxprune.search.journal import rows

    if not os.path.isfile(file):
        raise DataError(
            "sensitivities-missing",
            f"no sensitivities at {file}; measure them: onnxprune sensitivity MODEL -o {file}",
        )
    measured = measured_rows(rows(Path(file)))
    known = {g.name for g in report.groups}
    if strange := sorted(measured.keys() - known):
        raise UsageError(
            "sensitivities-mixed",
            f"{file} has group {strange[0]!r}, which the model of this report does not have; measure the sensitivities of this model",
        )
    found = replace(report, measured=measured)
    write_json(
        Path(run_dir) / "report.json" if os.path.isdir(run_dir) else Path(run_dir), found.to_json()
    )
    return found
