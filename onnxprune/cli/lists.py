"""rules, criteria, engines: what is there, one line each."""

from __future__ import annotations

from collections.abc import Sequence

import click

from onnxprune.cli.common import emit, shared, table


@click.command()
@shared
def rules(as_json: bool) -> None:
    """Operators that are understood, with the pattern of each."""
    from onnxprune.analysis.rules import rows

    _show(rows(), ("operator", "pattern"), as_json)


@click.command()
@shared
def criteria(as_json: bool) -> None:
    """Ways to score channels, to choose widths, and to repair what is left."""
    from onnxprune.allocate import ALLOCATORS
    from onnxprune.repair import REPAIRS
    from onnxprune.saliency import CRITERIA

    kinds = {"criterion": CRITERIA, "allocate": ALLOCATORS, "repair": REPAIRS}
    found = [(kind, *row) for kind, registry in kinds.items() for row in registry.rows()]
    _show(found, ("option", "name", "what it does"), as_json)


@click.command()
@shared
def engines(as_json: bool) -> None:
    """Engines to measure on, whether they can be used here, and how to install them."""
    from onnxprune.engines import ENGINES

    _show(ENGINES.rows(), ("engine", "what it is"), as_json)


def _show(rows: Sequence[tuple[str, ...]], header: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        emit([dict(zip(header, row)) for row in rows])
    else:
        click.echo(table([header, *rows]))
