"""What a row of the rule table is, and what it may ask of a node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Protocol

import numpy as np


class View(Protocol):
    """What a row may ask of the node it is applied to."""

    @property
    def op(self) -> str: ...
    @property
    def opset(self) -> int: ...
    @property
    def inputs(self) -> int: ...  # operands, trailing absent ones not counted
    @property
    def outputs(self) -> int: ...  # named ones

    def rank(self, slot: int) -> int: ...
    def dim(self, slot: int, axis: int) -> int | None: ...
    def attribute(self, name: str, default: object = None) -> object: ...
    def value(self, slot: int) -> np.ndarray | None: ...


@dataclass(frozen=True)
class Rule:
    """A row.

    pattern: the string. let: length of a letter, from an attribute. mixes: letters along which removing a position changes the
    kept ones; frozen unless allowed. freeze: letters never cut. sums: letters kept on the right that the op also sums over.
    refit: attribute -> letter whose new length it takes. macs: products of letters whose sum is the multiply-accumulates
    (`*` output positions, `@` input positions, `#` kernel positions, `...` leading axes). masked: slot of a weight that
    feeds outputs back, masked by the oracle along its last axis. means: letters that the op averages over; what is left is
    averaged over as many as before, by a factor behind the op, so that the cut is that of a sum.
    """

    pattern: str
    let: Mapping[str, int | str] = field(default_factory=dict)
    mixes: str = ""
    freeze: str = ""
    sums: str = ""
    refit: Mapping[str, str] = field(default_factory=dict)
    macs: tuple[str, ...] = ()
    masked: int | None = None
    means: str = ""


Row = Rule | Callable[[View], Rule | None]
GROUP: Mapping[str, int | str] = {"g": "group"}


def axes_letters(view: View, slot: int = 0) -> str:
    """One letter an axis of an operand."""
    return ascii_lowercase[: view.rank(slot)]


def per_channel(view: View, slot: int, letters: str) -> str:
    """Axes of a scale or zero point: the letters where it has one value a channel, none where it is a scalar."""
    return letters if view.rank(slot) == 1 and view.dim(slot, 0) != 1 else ""
