"""Rows of the rule table and the view of a node that they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Protocol

import numpy as np


class Misfit(Exception):
    """Raised if a node does not fit its rule; the message is the reason its axes are frozen for."""


class Attributes(Protocol):
    """Typed access to the attributes of a node.

    The accessors raise `Misfit` if an attribute has another type than its operator declares.
    """

    def attribute(self, name: str, default: object = None) -> object:
        """Return an attribute's value in Python form, strings decoded; `default` if absent."""
        ...

    def has(self, name: str) -> bool:
        """Return whether the node carries the attribute."""
        return self.attribute(name) is not None

    def integer(self, name: str, default: int) -> int:
        """Return an INT attribute; `default` if absent."""
        value = self.attribute(name)
        if value is None:
            return default
        if not isinstance(value, int):
            raise Misfit(f"attribute {name!r} is {value!r}, not an integer")
        return value

    def number(self, name: str, default: float) -> float:
        """Return a FLOAT attribute; `default` if absent."""
        value = self.attribute(name)
        if value is None:
            return default
        if not isinstance(value, float | int):
            raise Misfit(f"attribute {name!r} is {value!r}, not a number")
        return float(value)

    def text(self, name: str, default: str) -> str:
        """Return a STRING attribute; `default` if absent."""
        value = self.attribute(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise Misfit(f"attribute {name!r} is {value!r}, not a string")
        return value

    def integers(self, name: str) -> list[int] | None:
        """Return an INTS attribute; None if absent."""
        value = self.attribute(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
            raise Misfit(f"attribute {name!r} is {value!r}, not a list of integers")
        return value

    def numbers(self, name: str) -> list[float] | None:
        """Return a FLOATS attribute; None if absent."""
        value = self.attribute(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, float | int) for v in value):
            raise Misfit(f"attribute {name!r} is {value!r}, not a list of numbers")
        return value

    def texts(self, name: str) -> list[str] | None:
        """Return a STRINGS attribute; None if absent."""
        value = self.attribute(name)
        if value is None:
            return None
        # unlike those of a single string, elements of lists are not decoded
        if not isinstance(value, list) or not all(isinstance(v, bytes) for v in value):
            raise Misfit(f"attribute {name!r} is {value!r}, not a list of strings")
        return [v.decode(errors="replace") for v in value]


class View(Attributes, Protocol):
    """What a row may read of the node that it is applied to."""

    @property
    def op(self) -> str:
        """Operator type."""
        ...

    @property
    def opset(self) -> int:
        """Version of the standard operator set that the model imports."""
        ...

    @property
    def inputs(self) -> int:
        """Number of operands, trailing absent ones not counted."""
        ...

    @property
    def outputs(self) -> int:
        """Number of outputs with a name."""
        ...

    def has_output(self, index: int) -> bool:
        """Return whether an output has a name."""
        ...

    def rank(self, slot: int) -> int:
        """Return the number of axes of an operand; 0 if it is absent."""
        ...

    def dim(self, slot: int, axis: int) -> int | None:
        """Return the length of an axis of an operand; None if it is dynamic."""
        ...

    def value(self, slot: int) -> np.ndarray | None:
        """Return the value of an operand; None if it is absent or not constant."""
        ...

    def is_constant(self, slot: int) -> bool:
        """Return whether an operand is computed from initializers alone."""
        ...


@dataclass(frozen=True)
class Rule:
    """A row of the rule table: what an operator does with the axes of its operands.

    Attributes
    ----------
    pattern
        Axes of the operands and outputs, in the notation of `onnxprune.analysis.notation`.
    let
        Length of a letter: a number, or the name of the attribute that holds it.
    mixes
        Letters along which removing a position changes the kept ones; frozen unless allowed.
    freeze
        Letters that are never cut.
    sums
        Letters of the output that the operator also sums over.
    refit
        Attribute -> letter (or product of letters) whose new length is written to it after a cut.
    macs
        Products of letters whose sum is the number of multiply-accumulates. Marks stand for
        several axes: `*` output positions, `@` input positions, `#` kernel positions, `...`
        leading axes.
    masked
        Slot of a recurrent weight: verification masks it along its last axis.
    zeroed
        Slot -> axis of operands that hold the parameters of output channels. Verification masks
        them, so that removed channels are zero within the operator as well.
    means
        Letters that the operator averages over. After a cut the average is still taken over the
        original length: a factor after the node corrects it, so that the cut equals that of a sum.
    root_mean
        (letters, slot): letters over whose root mean square the operator divides, and the slot of
        its scale. After a cut, scale and epsilon are multiplied so that the result is unchanged.
    added
        Slots of operands that are added to the data which the operator sums over: verification
        masks them although they are constant.
    pins
        Attribute -> (letter, value): a default that depends on the length of the letter. A cut of
        the letter writes the value from before.
    """

    pattern: str
    let: Mapping[str, int | str] = field(default_factory=dict)
    mixes: str = ""
    freeze: str = ""
    sums: str = ""
    refit: Mapping[str, str] = field(default_factory=dict)
    macs: tuple[str, ...] = ()
    masked: int | None = None
    zeroed: Mapping[int, int] = field(default_factory=dict)
    means: str = ""
    root_mean: tuple[str, int] | None = None
    added: tuple[int, ...] = ()
    pins: Mapping[str, tuple[str, float]] = field(default_factory=dict)


Row = Rule | Callable[[View], Rule | None]
GROUP: Mapping[str, int | str] = {"g": "group"}  # `let` of grouped convolutions


def axes_letters(view: View, slot: int = 0) -> str:
    """Return one letter per axis of an operand."""
    return ascii_lowercase[: view.rank(slot)]


def axis_attribute(view: Attributes, default: int, rank: int) -> int:
    """Return the attribute `axis`, counted from the front."""
    return view.integer("axis", default) % max(rank, 1)


def axis_operand(view: View, slot: int, rank: int) -> int | None:
    """Return a constant axis, counted from the front; None if it is computed or no axis."""
    value = view.value(slot)
    # operators of other domains have no check of their operands
    if value is None or value.size != 1 or value.dtype.kind not in "iu":
        return None
    axis = int(value.item())
    return axis % rank if -rank <= axis < rank else None


def per_channel(view: View, slot: int, letters: str) -> str:
    """Return the axes of a scale or zero point: `letters` if per channel, none if scalar."""
    # a vector of one element is a scalar too, as some exporters write it
    return letters if view.rank(slot) == 1 and view.dim(slot, 0) != 1 else ""
