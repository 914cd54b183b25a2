"""Axes of an operand, matched with the tokens of a pattern."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from onnxprune.analysis.notation import LEADING, SPATIAL, Token, spell
from onnxprune.analysis.rule import Misfit
from onnxprune.ir.values import Dim

KERNEL = "kernel"  # mark of the spatial axes of a weight


class Nth(NamedTuple):
    """One of the axes that a mark stands for.

    Attributes
    ----------
    mark
        LEADING, SPATIAL or the kernel's.
    number
        Index among the axes of the mark; leading axes are counted from the right.
    """

    mark: str
    number: int


Key = str | Nth  # an axis that has an entry in the tables: a letter or an axis of a mark
Factors = tuple[str, ...]  # letters whose product is one axis
Tokens = list[Key | Factors]


def letters_of(token: Key | Factors) -> tuple[str, ...]:
    """Return the letters of a token: none for an axis of a mark."""
    if isinstance(token, Nth):
        return ()
    return (token,) if isinstance(token, str) else token


def expand(tokens: tuple[Token, ...], shape: tuple[Dim, ...], slot: int) -> Tokens | None:
    """Return one token per axis; None for a scalar that is written with axes of length 1.

    `...` is counted from the right, since operands are aligned there, `*` from the left. The
    spatial axes of a weight have a mark of their own.
    """
    marks = [t for t in tokens if t in (SPATIAL, LEADING)]
    extra = len(shape) - (len(tokens) - len(marks))
    if (not marks and extra) or extra < 0:
        if prod(d if isinstance(d, int) else 2 for d in shape) == 1:
            return None
        raise Misfit(f"operand {slot} of rank {len(shape)} does not have the axes {spell(tokens)}")
    out: Tokens = []
    for token in tokens:
        if token == LEADING:
            out += [Nth(LEADING, k) for k in reversed(range(extra))]
        elif token == SPATIAL:
            out += [Nth(SPATIAL if slot == 0 else KERNEL, k) for k in range(extra)]
        else:
            out.append(token)
    return out
