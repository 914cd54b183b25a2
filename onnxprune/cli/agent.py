"""Command agent: the file that measures models on another machine, and what it finds there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli.command import command
from onnxprune.cli.common import emit, say, shared


@command(
    "onnxprune agent pi@raspberrypi  # which runtimes it has",
)
@click.argument("host", required=False, metavar="[USER@HOST]")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    help="Write the agent, one file of Python 3.8 without dependencies.",
)
@shared
def agent(host: str | None, output: str | None, as_json: bool) -> None:
    """Show the runtimes of a machine that is reached by ssh, or print the agent that finds them.

    --engine remote:USER@HOST sends the agent by itself; nothing is installed or listens there.
    """
    if host:
        from onnxprune.engines.remote import check_host

        facts = check_host(host)
        if as_json:
            emit(facts)
        else:
            click.echo(_format_facts(host, facts))
        return
    from onnxprune.engines.connection import agent_source
    from onnxprune.files import write_bytes

    source = agent_source()
    if output is None:
        click.echo(source.decode(), nl=False)
        return
    write_bytes(Path(output), source)
    say(f"written to {output}; on the device: python3 {Path(output).name} --facts")


def _format_facts(host: str, facts: dict[str, Any]) -> str:
    """Return the machine, its state and a line per runtime."""
    from onnxprune.report.text import columns

    state = facts["state"]
    machine = f"{facts['host']}: {facts['board'] or facts['machine']}, {facts['machine']}"
    parts = [machine]
    if state["mode"]:
        parts.append(f"power mode {state['mode']}")
    if state["temperatures"]:
        parts.append(f"{max(state['temperatures']):.0f} degrees C")
    rows = [("engine", "version")]
    rows += [(f"remote:{host}/{name}", version) for name, version in facts["runtimes"].items()]
    rows += [(f"remote:{host}/{name}", f"fails: {text}") for name, text in facts["broken"].items()]
    return f"{', '.join(parts)}\n\n{columns(rows, left=2)}"
