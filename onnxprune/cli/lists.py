"""Commands rules, criteria, engines and devices: list what can be named, one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from onnxprune.cli.command import command
from onnxprune.cli.common import emit, shared


@command()
@shared
def rules(as_json: bool) -> None:
    """List the supported operators with the pattern or description of each rule."""
    from onnxprune.analysis.movement import MOVES
    from onnxprune.analysis.rules import PLUGINS, RULES, Rule

    patterns = {}
    for op, rule in RULES.items():
        if isinstance(rule, Rule):
            patterns[op] = rule.pattern
        else:
            patterns[op] = _take_first_line(rule, "depends on its attributes")
    patterns |= dict.fromkeys(MOVES, "moves positions")
    patterns |= dict(PLUGINS.rows())
    _show(sorted(patterns.items()), {"operator": "operator", "pattern": "pattern"}, as_json)


@command()
@shared
def criteria(as_json: bool) -> None:
    """List criteria, allocators, repairs, methods, metrics, decoders, data and labels."""
    from onnxprune.allocators import ALLOCATORS
    from onnxprune.criteria import CRITERIA
    from onnxprune.data import DATA_SOURCES
    from onnxprune.data.label_formats import FORMATS
    from onnxprune.metrics import METRICS
    from onnxprune.metrics.heads import HEADS
    from onnxprune.repair import REPAIRS
    from onnxprune.search import METHODS

    registries = {
        "criterion": CRITERIA,
        "allocate": ALLOCATORS,
        "repair": REPAIRS,
        "method": METHODS,
        "metric": METRICS,
        "data": DATA_SOURCES,
        "labeled": FORMATS,
    }
    rows = [(option, *row) for option, registry in registries.items() for row in registry.rows()]
    for head in HEADS:
        also = f"; also {', '.join(head.also)}" if head.also else ""
        rows.append(("decoder", head.name, f"{head.layout}{also}"))
    titles = {"option": "option", "name": "name", "what it does": "description"}
    _show(rows, titles, as_json)


@command()
@shared
def engines(as_json: bool) -> None:
    """List engines, whether each is available, and how to install it."""
    from onnxprune.engines import ENGINES

    rows = []
    for name, text in ENGINES.rows():
        # a plug-in that cannot be imported: to get it would raise its error
        if text.startswith("broken: "):
            rows.append((name, "no", text, ""))
            continue
        engine = ENGINES.get(name)
        try:
            reason = engine.available()
        except Exception as problem:  # a plug-in may raise anything
            reason = f"broken: {problem!r}"
        rows.append((name, "no" if reason else "yes", text, reason or engine.install))
    titles = {
        "engine": "engine",
        "available": "available",
        "what it is": "description",
        "how to get it": "installation",
    }
    _show(rows, titles, as_json)


@command()
@shared
def devices(as_json: bool) -> None:
    """List devices: multiples of channels by precision with their evidence, and their tools."""
    from onnxprune.engines.devices import DEVICES

    rows = [
        (
            device.name,
            device.title,
            precision,
            str(multiple.channels),
            device.handoff,
            device.engine,
            multiple.evidence,
        )
        for device in DEVICES.values()
        for precision, multiple in device.multiples.items()
    ]
    titles = {
        "device": "device",
        "what it is": "description",
        "precision": "precision",
        "multiple of channels": "multiple",
        "bundle": "handoff",
        "engine here": "engine",
        "evidence": "evidence",
    }
    _show(rows, {key: title for key, title in zip(titles.values(), titles, strict=True)}, as_json)


def _take_first_line(rule: object, otherwise: str) -> str:
    """Return the first line of a docstring."""
    return next(iter((rule.__doc__ or "").strip().splitlines()), otherwise)


def _show(rows: Sequence[tuple[str, ...]], titles: Mapping[str, str], as_json: bool) -> None:
    """Print rows as JSON or as a table; `titles` maps the keys of the former to its titles."""
    if as_json:
        emit([dict(zip(titles, row, strict=True)) for row in rows])
        return
    from onnxprune.report.text import columns

    click.echo(columns([tuple(titles.values()), *rows], left=len(titles)))
