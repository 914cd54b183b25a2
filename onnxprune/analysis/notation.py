"""The einops-like strings of the rule table.

    Conv    n (g c) *, (g o) c *, (g o) -> n (g o) *

A letter is an axis; equal letters are one axis. A letter missing on the right is contracted. Parentheses are a product of
letters. `*` stands for the spatial axes, any number of them; `...` for leading axes under broadcasting; `1` for an axis of
length one that the op makes.
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
    """A parsed string. inputs, outputs: tokens an axis, an operand; contracted: letters missing on the right, in order."""

    text: str
    inputs: tuple[tuple[Token, ...], ...]
    outputs: tuple[tuple[Token, ...], ...]

    @property
    def contracted(self) -> tuple[str, ...]:
        right = {x for axes in self.outputs for x in letters(axes)}
        return tuple(
            dict.fromkeys(x for axes in self.inputs for x in letters(axes) if x not in right)
        )


def letters(axes: tuple[Token, ...]) -> list[str]:
    """The letters among tokens, products opened."""
    return [x for t in axes for x in (t if isinstance(t, tuple) else (t,)) if x.isalpha()]


@cache
def parse(text: str) -> Pattern:
    """Parse a pattern; ValueError quotes it and what is wrong."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"pattern {text!r} has no '->'")
    return Pattern(text, _operands(left, text), _operands(right, text))


def _operands(side: str, text: str) -> tuple[tuple[Token, ...], ...]:
    return tuple(_axes(part, text) for part in side.split(","))


def _axes(part: str, text: str) -> tuple[Token, ...]:
    tokens: list[Token] = []
    at, end = 0, len(part.rstrip())
    while at < end:
        found = _TOKEN.match(part, at)
        if found is None:
            raise ValueError(f"pattern {text!r}: cannot read {part[at:].strip()!r}")
        word = found.group(1)
        tokens.append(tuple(word[1:-1].split()) if word[0] == "(" else word)
        at = found.end()
    for mark in (SPATIAL, LEADING):
        if tokens.count(mark) > 1:
            raise ValueError(f"pattern {text!r}: {mark!r} twice in one operand")
    if LEADING in tokens[1:]:
        raise ValueError(f"pattern {text!r}: '...' must come first")
    return tuple(tokens)
