"""report: the report of a run that is over."""

from __future__ import annotations

import click

from onnxprune.cli.common import emit, say, shared


@click.command()
@click.argument("run_dir", type=click.Path())
@shared
def report(run_dir: str, as_json: bool) -> None:
    """Show the report of RUN_DIR (or of a report.json)."""
    from onnxprune.report import terminal
    from onnxprune.report.data import Report

    found = Report.load(run_dir)
    if as_json:
        emit(found.to_json())
        return
    for stage in found.stages:
        click.echo(f"{stage.name:<12}{stage.seconds:8.2f} s  {stage.detail}".rstrip())
    click.echo(terminal.summary(found))
    if found.warnings:
        say(terminal.warnings(found))
