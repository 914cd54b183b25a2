"""Short texts and tables of results, for prompts, logs and notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence

from onnxprune.errors import printable

MOST_ROWS = 40  # of a table; the rest is counted


class Summarized:
    """Base of results with a one-line repr, a text `summary()` and a table in notebooks.

    Dataclasses need `repr=False` to inherit the repr. No text has the values of an array.
    """

    def _title(self) -> str:
        """Return what the object is in half a line."""
        raise NotImplementedError

    def _rows(self) -> Sequence[Sequence[str]]:
        """Return the rows of the table, with a header; they have equal lengths."""
        return ()

    def __repr__(self) -> str:
        """Return one short line."""
        return f"<{type(self).__name__}: {printable(self._title())}>"

    def summary(self) -> str:
        """Return title and table as text.

        Examples
        --------
        >>> from onnxprune import Plan
        >>> print(Plan("", {"conv": (0, 2)}, {"conv": 3}).summary())
        Plan: removes 1 of 3 channels in 1 group
        group  before  after
        conv   3       2
        """
        rows, more = self._cut_rows()
        lines = [f"{type(self).__name__}: {printable(self._title())}"]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, *more])

    def _repr_html_(self) -> str:
        """Return title and table as HTML, which notebooks display."""
        rows, more = self._cut_rows()
        parts = [f"<b>{type(self).__name__}</b>: {html.escape(printable(self._title()))}"]
        if rows:
            lines = [_format_row(row, "td" if number else "th") for number, row in enumerate(rows)]
            parts.append(f"<table>{''.join(lines)}</table>")
        return "\n".join(["<div>", *parts, *map(html.escape, more), "</div>"])

    def _cut_rows(self) -> tuple[list[list[str]], list[str]]:
        """Return printable rows, and a line on those that are left out."""
        rows = [[printable(cell) for cell in row] for row in self._rows()]
        # the header is not counted
        rest = len(rows) - 1 - MOST_ROWS
        return rows[: MOST_ROWS + 1], [f"and {rest} more"] if rest > 0 else []


def _format_row(cells: Sequence[str], tag: str) -> str:
    """Return one row of a table."""
    body = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{body}</tr>"
