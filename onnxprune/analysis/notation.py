"""Notation of the rule table, similar to that of einops.

    Conv    n (g c) *, (g o) c *, (g o) -> n (g o) *

A letter is an axis, and equal letters are one axis. A letter that is missing on the right is
contracted. Parentheses are a product of letters. `*` stands for any number of spatial axes, `...`
for leading axes under broadcasting, `1` for an axis of length one that the operator creates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

SPATIAL, LEADING, ONE = "*", "...", "1"
_TOKEN = re.compile(r"\s*(\.\.\.|\*|1|[a-zA-Z]|\([a-zA-Z ]+\))")

Token = str | tuple[str, ...]  # a letter or one of the marks; a tuple is a product


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern.

    Attributes
    ----------
    text
        The pattern.
    inputs
        Tokens of each operand, one per axis.
    outputs
        Tokens of each output.
    """

    text: str
    inputs: tuple[tuple[Token, ...], ...]
    outputs: tuple[tuple[Token, ...], ...]

    @property
    def contracted(self) -> tuple[str, ...]:
        """Letters that are missing on the right, in order."""
        right = {x for axes in self.outputs for x in letters(axes)}
        left = [x for axes in self.inputs for x in letters(axes)]
        return tuple(dict.fromkeys(x for x in left if x not in right))


def letters(axes: tuple[Token, ...]) -> list[str]:
    """Return the letters among tokens, those of products included."""
    return [x for t in axes for x in (t if isinstance(t, tuple) else (t,)) if x.isalpha()]


def spell(axes: tuple[Token, ...]) -> str:
    """Return tokens in the notation, quoted."""
    words = [f"({' '.join(t)})" if isinstance(t, tuple) else t for t in axes]
    return repr(" ".join(words))


@cache
def parse(text: str) -> Pattern:
    """Parse a pattern.

    Raises
    ------
    ValueError
        The text is not a pattern; the message quotes it.
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"pattern {text!r} has no '->'")
    return Pattern(text, _operands(left, text), _operands(right, text))


def _operands(side: str, text: str) -> tuple[tuple[Token, ...], ...]:
    """Parse the operands on one side of the arrow."""
    return tuple(_parse_axes(part, text) for part in side.split(","))


def _parse_axes(part: str, text: str) -> tuple[Token, ...]:
    """Parse the axes of one operand."""
    tokens: list[Token] = []
    at, end = 0, len(part.rstrip())
    while at < end:
        match = _TOKEN.match(part, at)
        if match is None:
            raise ValueError(f"pattern {text!r}: cannot read {part[at:].strip()!r}")
        word = match.group(1)
        tokens.append(tuple(word[1:-1].split()) if word[0] == "(" else word)
        at = match.end()
    # twice, it would be open how many axes each of the two stands for
    for mark in (SPATIAL, LEADING):
        if tokens.count(mark) > 1:
            raise ValueError(f"pattern {text!r}: {mark!r} twice in one operand")
    # broadcasting aligns axes at the right, so that only leading axes can be of any number
    if LEADING in tokens[1:]:
        raise ValueError(f"pattern {text!r}: '...' must come first")
    return tuple(tokens)
