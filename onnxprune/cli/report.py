"""Command report: show the report of a finished run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
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
    "onnxprune report small.run tiny.run  # compare runs of one model",
)
@click.argument("run_dirs", type=click.Path(), nargs=-1, required=True, metavar="RUN_DIR...")
@click.option(
    "--sensitivities",
    type=click.Path(),
    metavar="FILE",
    help="Add the measurements that `onnxprune sensitivity` wrote to FILE to the report.",
)
@shared
def report(run_dirs: tuple[str, ...], sensitivities: str | None, as_json: bool) -> None:
    """Show the report of RUN_DIR (or a report.json), and write report.html next to report.json.

    The page compares the run with the other runs of its model in the same folder. With several
    RUN_DIR, the first one's page compares these instead, and their figures are printed.
    """
    from onnxprune.report import html, terminal
    from onnxprune.report.data import Report

    run_dir, *others = run_dirs
    if others:
        _compare_runs(run_dirs, sensitivities, as_json)
        return
    result = Report.load(run_dir)
    if sensitivities:
        result = _add_sensitivities(result, run_dir, sensitivities)
    page = html.write(result, _folder_of(run_dir))
    if as_json:
        emit(result.to_json())
        return
    for stage in result.stages:
        click.echo(f"{stage.name:<12}{stage.seconds:8.2f} s  {stage.detail}".rstrip())
    terminal.write_summary(result, page, sys.stdout)
    if result.warnings:
        say(terminal.warnings(result))


def _folder_of(run_dir: str) -> Path:
    """Return the folder that the page of a run directory or a report.json is written into."""
    return Path(run_dir) if os.path.isdir(run_dir) else Path(run_dir).parent


def _compare_runs(run_dirs: Sequence[str], sensitivities: str | None, as_json: bool) -> None:
    """Print the figures of several runs, and write the page of the first one.

    Raises
    ------
    UsageError
        They are of different models, or sensitivities are given, which belong to one run.
    """
    from onnxprune.report import html
    from onnxprune.report.data import Report
    from onnxprune.report.runs import Run, compare, link_to
    from onnxprune.report.text import columns

    if sensitivities:
        raise UsageError(
            "report-sensitivities",
            f"--sensitivities belong to one run, not to {len(run_dirs)}; name that run alone",
        )
    folders = [_folder_of(run_dir) for run_dir in run_dirs]
    names = [folder.resolve().name for folder in folders]
    runs = []
    for run_dir, folder, name in zip(run_dirs, folders, names, strict=True):
        # run directories of two folders may have one name
        name = name if names.count(name) == 1 else run_dir
        runs.append(Run(name, Report.load(run_dir), link_to(folder, folders[0])))
    comparison = compare(runs[0], runs[1:])
    assert comparison is not None  # there are at least two
    page = html.write(runs[0].report, folders[0], runs[1:])
    if as_json:
        emit({"measure": comparison.measure, "runs": [asdict(row) for row in comparison.lines]})
        return
    rows: list[Sequence[str]] = [
        ("", "MACs", "params", "time", comparison.measure, "error", "worst verdict")
    ]
    for line in comparison.lines:
        shares = ["-" if v is None else f"{v:.1%}" for v in (line.macs, line.params, line.time)]
        figures = ["-" if v is None else f"{v:.4g}" for v in (line.quality, line.error)]
        figures[0] += " *" if line.is_other_data else ""
        rows.append((line.name, *shares, *figures, line.level or "-"))
    click.echo(columns(rows))
    if any(line.is_other_data for line in comparison.lines):
        click.echo("\n* measured on other inputs than the first run")
    click.echo(f"\nreport: {page}")


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
