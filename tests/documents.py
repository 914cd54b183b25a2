"""Documents as programs: what a reader would type and write, taken out of the Markdown.

A `console` block holds commands (lines that begin with `$ `, and what follows a backslash) and under each what it prints; a `python` block is a
program; a block behind `<!-- file: NAME -->` is a file that the reader writes. `<!-- not run: REASON -->` in front of a block leaves it out, `<!-- exit: N -->`
says that its last command ends with that status.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^<!--\s*(?P<note>[a-z ]+):\s*(?P<value>[^\n]*?)\s*-->\n+)?^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"(?<![\w#])[-+]?\d[\d.,e+-]*")
ELLIPSIS = "..."
NOTES = {None, "file", "not run", "exit"}
NEEDS_ZOO = "<!-- needs: zoo -->"  # anywhere in a page whose commands work on a trained model


@dataclass(frozen=True)
class Block:
    """A fenced block. note, value: what the comment in front of it says; line: where it begins."""

    language: str
    text: str
    note: str | None
    value: str
    line: int


@dataclass
class Command:
    """A command line and the lines that the document shows under it."""

    text: str
    shown: list[str] = field(default_factory=list)


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a document that have a language."""
    text = path.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        if found["note"] not in NOTES:
            raise ValueError(
                f"{path}: <!-- {found['note']}: ... --> is none of {sorted(n for n in NOTES if n)}"
            )
        yield Block(
            found["language"],
            found["text"],
            found["note"],
            found["value"] or "",
            text.count("\n", 0, found.start("language")) + 1,
        )


def commands(block: Block) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    continued = False
    for line in block.text.splitlines():
        if continued:
            found[-1].text += "\n" + line
        elif line.startswith("$ "):
            found.append(Command(line[2:]))
        elif not found:
            raise ValueError(f"line {block.line}: a console block begins with '$ '")
        else:
            found[-1].shown.append(line)
        continued = line.endswith("\\")
    return found


def alike(line: str) -> str:
    """A line without its figures and spacing: what must stay the same from one machine to the next."""
    return " ".join(_NUMBER.sub("#", line).split())


def absent(shown: list[str], printed: str) -> list[str]:
    """The shown lines that are not printed, figures aside; `...` stands for any lines."""
    there = {alike(line) for line in printed.splitlines()}
    return [
        line for line in shown if line.strip() not in ("", ELLIPSIS) and alike(line) not in there
    ]
