"""Commands, programs and files in Markdown documents.

A `console` block has commands (lines that begin with `$ `, continued after a backslash), each
followed by its output; a `python` block is a program; a block after `<!-- file: NAME -->` is the
content of a file. A block after `<!-- not run: REASON -->` is left out; the last command of a block
after `<!-- exit: N -->` ends with that status.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^<!--\s*(?P<note>[a-z ]+):\s*(?P<value>[^\n]*?)\s*-->\n+)?"
    r"^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"(?<![\w#])[-+]?\d[\d.,e+-]*")
ELLIPSIS = "..."
NOTES = {None, "file", "not run", "exit"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes
    ----------
    language, text
        Its language and content.
    note, value
        The comment before it, NOTE: VALUE.
    line
        Number of its first line.
    """

    language: str
    text: str
    note: str | None
    value: str
    line: int


@dataclass
class Command:
    """A command.

    Attributes
    ----------
    text
        The command line.
    shown
        Lines of its output in the document.
    """

    text: str
    shown: list[str] = field(default_factory=list)


def blocks(path: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a document that have a language."""
    text = path.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        note = match["note"]
        if note not in NOTES:
            known = sorted(n for n in NOTES if n)
            raise ValueError(f"{path}: <!-- {note}: ... --> is not one of {known}")
        line = text.count("\n", 0, match.start("language")) + 1
        yield Block(match["language"], match["text"], note, match["value"] or "", line)


def commands(block: Block) -> list[Command]:
    """Return the commands of a console block."""
    result: list[Command] = []
    continued = False
    for line in block.text.splitlines():
        if continued:
            result[-1].text += "\n" + line
        elif line.startswith("$ "):
            result.append(Command(line[2:]))
        elif not result:
            raise ValueError(f"line {block.line}: a console block must begin with '$ '")
        else:
            result[-1].shown.append(line)
        continued = line.endswith("\\")
    return result


def alike(line: str) -> str:
    """Return a line without figures and spacing: the part that is the same on all machines."""
    return " ".join(_NUMBER.sub("#", line).split())


def absent(shown: list[str], printed: str) -> list[str]:
    """Return the shown lines that are not printed, apart from figures; `...` is any lines."""
    present = {alike(line) for line in printed.splitlines()}
    return [
        line for line in shown if line.strip() not in ("", ELLIPSIS) and alike(line) not in present
    ]
