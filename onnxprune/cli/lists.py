"""rules, criteria, engines: what is there, one line each."""

from __future__ import annotations

from collections.abc import Sequence

import click

from onnxprune.cli.common import emit, shared


@click.command()
@shared
def rules(as_json: bool) -> None:
    """Operators that are understood: the pattern of each, or in words what it does with channels."""
    from onnxprune.analysis.movement import MOVES
    from onnxprune.analysis.rules import PLUGINS, RULES, Rule

    found = {
        op: rule.pattern
        if isinstance(rule, Rule)
        else _first_line(rule, "depends on its attributes")
        for op, rule in RULES.items()
    }
    found |= {op: "moves positions" for op in MOVES} | dict(PLUGINS.rows())
    _show(sorted(found.items()), ("operator", "pattern"), as_json)


@click.command()
@shared
def criteria(as_json: bool) -> None:
    """Ways to score channels, to choose widths, to repair what is left, to measure quality, and to give data."""
    from onnxprune.allocators import ALLOCATORS
    from onnxprune.criteria import CRITERIA
    from onnxprune.data import DATA_SOURCES
    from onnxprune.metrics import METRICS
    from onnxprune.repair import REPAIRS
    from onnxprune.search import METHODS

    kinds = {
        "criterion": CRITERIA,
        "allocate": ALLOCATORS,
        "repair": REPAIRS,
        "method": METHODS,
        "metric": METRICS,
        "data": DATA_SOURCES,
    }
    found = [(kind, *row) for kind, registry in kinds.items() for row in registry.rows()]
    _show(found, ("option", "name", "what it does"), as_json)


@click.command()
@shared
def engines(as_json: bool) -> None:
    """Engines to measure on, whether they can be used here, and how to install them."""
    from onnxprune.engines import ENGINES

    rows = []
    for name, text in ENGINES.rows():
        if text.startswith("broken: "):
            rows.append((name, "no", text, ""))
            continue
        engine = ENGINES.get(name)
        try:
            reason = engine.available()
        except Exception as problem:  # of a plug-in
            reason = f"broken: {problem!r}"
        rows.append((name, "no" if reason else "yes", text, reason or engine.install))
    _show(rows, ("engine", "available", "what it is", "how to get it"), as_json)


def _first_line(thing: object, otherwise: str) -> str:
    """Of a docstring."""
    return next(iter((thing.__doc__ or "").strip().splitlines()), otherwise)


def _show(rows: Sequence[tuple[str, ...]], header: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        emit([dict(zip(header, row, strict=False)) for row in rows])
    else:
        from onnxprune.report.terminal import columns

        click.echo(columns([header, *rows], left=len(header)))
