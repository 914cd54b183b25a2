"""Operators that keep the shape of their operand."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.analysis.rule import Rule, View, axes_letters, axis_attribute


def elementwise(view: View) -> Rule:
    """Broadcast: axes are aligned at the right, and aligned axes are one."""
    return Rule(", ".join(["..."] * view.inputs) + " -> ...")


def along_axis(default: int, flattened_before: int = 0) -> Callable[[View], Rule]:
    """Return a row that keeps the shape and mixes all positions of `axis`.

    Parameters
    ----------
    default
        Value of `axis` if the attribute is absent.
    flattened_before
        Before this opset, the operator flattens `axis` and all axes after it (default 1), and
        mixes them all.
    """

    def row(view: View) -> Rule:
        names = axes_letters(view)
        flattened = view.opset < flattened_before
        axis = axis_attribute(view, 1 if flattened else default, len(names))
        mixed = names[axis:] if flattened else names[axis : axis + 1]
        return Rule(f"{' '.join(names)} -> {' '.join(names)}", mixes=mixed)

    return row
