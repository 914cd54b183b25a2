"""Table of float and quantized models, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.report.text import columns

_MOST_NAMES = 3  # of nodes that stay in float for one reason


def format_quantization(facts: Mapping[str, Any] | None) -> str:
    """Return the table of models, the form, and the nodes that stay in float; "" without."""
    if not facts:
        return ""
    lines = [_format_models(facts["models"]), f"quantization: {facts['text']}"]
    nodes: dict[str, list[str]] = {}
    for node, why in facts.get("excluded", {}).items():
        nodes.setdefault(why, []).append(node)
    for why, names in nodes.items():
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        lines.append(f"in float32: {', '.join(names[:_MOST_NAMES])}{more} ({why})")
    return "\n".join(lines)


def _format_models(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of models; speeds are against the first one."""
    first = next(iter(rows.values()))
    engines = list(dict.fromkeys(engine for row in rows.values() for engine in row["speed"]))
    table: list[tuple[str, ...]] = [
        ("model", "divergence", *first["metrics"], "kB", *(f"speed on {e}" for e in engines))
    ]
    for name, row in rows.items():
        numbers = [row["divergence"], *row["metrics"].values()]
        cells = ["not measured" if v is None else f"{v:.4g}" for v in numbers]
        speeds = [_format_speed(row["speed"].get(engine)) for engine in engines]
        table.append((name, *cells, f"{row['bytes'] / 1e3:,.1f}", *speeds))
    return columns(table, left=1)


def _format_speed(speed: Mapping[str, float] | None) -> str:
    """Return a ratio with its interval; the first model has none."""
    if speed is None:
        return "1"
    return f"{speed['median']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})"
