"""Reductions and cumulative sums."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.analysis.rule import Rule, View, axes_letters, axis_attribute, axis_operand


def reduce(linear: bool, mean: bool = False) -> Callable[[View], Rule | None]:
    """Return a row that reduces over `axes`.

    Parameters
    ----------
    linear
        Zeros do not change the result, so the axes are contracted; otherwise they are mixed.
    mean
        The result is divided by the number of positions.
    """

    def row(view: View) -> Rule | None:
        names = axes_letters(view)
        axes = _read_reduced_axes(view)
        if axes is None:
            return None
        # no axes: all are reduced, unless the attribute makes the node an identity
        if not axes:
            if view.integer("noop_with_empty_axes", 0):
                return Rule("... -> ..." if view.inputs < 2 else "..., I -> ...")
            axes = list(range(len(names)))
        reduced = {names[a] for a in axes}
        if view.integer("keepdims", 1):
            right = ["1" if n in reduced else n for n in names]
        else:
            right = [n for n in names if n not in reduced]
        # in upper case, which no axis of the data has
        left = " ".join(names) + (", I" if view.inputs > 1 else "")
        over = "".join(sorted(reduced))
        pattern = f"{left} -> {' '.join(right)}"
        return Rule(pattern, mixes="" if linear else over, means=over if mean else "")

    return row


def _read_reduced_axes(view: View) -> list[int] | None:
    """Return the axes, given as input or attribute (empty if absent); None if computed."""
    if view.inputs <= 1:
        return view.integers("axes") or []
    value = view.value(1)
    return None if value is None else [int(a) for a in value]


def global_average(view: View) -> Rule:
    """Average over all axes but the first two, which are channels if a mean is written so."""
    names = axes_letters(view)
    right = [n if i < 2 else "1" for i, n in enumerate(names)]
    return Rule(f"{' '.join(names)} -> {' '.join(right)}", means="".join(names[2:]))


def arg_reduce(view: View) -> Rule:
    """Return the position of an extreme along `axis`, which is never cut."""
    names = axes_letters(view)
    axis = axis_attribute(view, 0, len(names))
    kept = "1" if view.integer("keepdims", 1) else ""
    right = [kept if i == axis else n for i, n in enumerate(names)]
    return Rule(f"{' '.join(names)} -> {' '.join(right)}", freeze=names[axis])


def cumsum(view: View) -> Rule:
    """Sum cumulatively, which mixes the axis; all axes if it is computed."""
    names = axes_letters(view)
    axis = axis_operand(view, 1, len(names))
    mixed = names if axis is None else names[axis]
    return Rule(f"{' '.join(names)}, -> {' '.join(names)}", mixes=mixed)
