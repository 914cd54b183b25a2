"""Tables of the robustness page."""

from __future__ import annotations

LONGEST_CELL = 300


def head(*names: str) -> list[str]:
    """Return the first two lines of a table."""
    return [line(*names), line(*["---"] * len(names))]


def line(*cells: object) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def cell(text: str) -> str:
    """Escape the text of a cell."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")[:LONGEST_CELL]
