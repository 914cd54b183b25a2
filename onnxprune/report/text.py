"""Formatting of figures, durations, names and tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import isfinite
from typing import Any, TextIO

from onnxprune.errors import printable

_TO_ASCII = str.maketrans({"±": "+-", "–": "-", "…": "...", "×": "x"})
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float) -> str:
    """Return a duration in its natural unit: "5 s", "2 min", "1 h 30 min"."""
    # rounded to minutes, a shorter time would be off by up to a third
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def amount(value: float, unit: str = "") -> str:
    """Return a quantity with three digits and a decimal prefix: 12.3 M."""
    for factor, prefix in _PREFIXES:
        if value >= factor:
            scaled = value / factor
            # .3g would write 999.9 as 1e+03
            digits = f"{scaled:.3g}" if scaled < 999.5 else f"{scaled:.0f}"
            return f"{digits} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align rows as columns, the first `left` ones to the left, the others to the right."""
    # an end of line in a name would break its row
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: Any, unit: str = "") -> str:
    """Return a figure with three digits and a prefix, or a dash if there is none."""
    return amount(value, unit) if isinstance(value, (int, float)) and isfinite(value) else "–"


def clip(text: Any, most: int) -> str:
    """Return a text without its middle if it is longer than `most`."""
    text = str(text)
    # both ends: names of a network share their beginnings and differ at the end
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def is_ascii_only(stream: TextIO) -> bool:
    """Return whether only ASCII is legible on a stream."""
    # Python writes UTF-8 even if the locale is C
    chosen = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_CTYPE", "LANG"))), "")
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower()
    return chosen in ("C", "POSIX") or not encoding.startswith("utf")


def legible(text: str, stream: TextIO) -> str:
    """Return a text without the signs of our own that a stream for ASCII only cannot show.

    Names keep their characters.
    """
    return text.translate(_TO_ASCII) if is_ascii_only(stream) else text
