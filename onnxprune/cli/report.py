"""report: the report of a run that is over."""

from __future__ import annotations

import os
from pathlib import Path

import click

from onnxprune.cli.common import emit, say, shared


@click.command()
@click.argument("run_dir", type=click.Path())
@shared
def report(run_dir: str, as_json: bool) -> None:
    """Show the report of RUN_DIR (or of a report.json), and write it as a page, report.html, beside report.json."""
    from onnxprune.report import html, terminal
    from onnxprune.report.data import Report

    found = Report.load(run_dir)
    page = html.write(found, Path(run_dir) if os.path.isdir(run_dir) else Path(run_dir).parent)
    if as_json:
        emit(found.to_json())
        return
    for stage in found.stages:
        click.echo(f"{stage.name:<12}{stage.seconds:8.2f} s  {stage.detail}".rstrip())
    click.echo(terminal.summary(found))
    click.echo(f"page: {page}")
    if found.warnings:
        say(terminal.warnings(found))
