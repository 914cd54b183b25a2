"""Gather, scatter and selection by computed indices."""

from __future__ import annotations

from string import ascii_uppercase

from onnxprune.analysis.rule import Rule, View, axes_letters, axis_attribute, axis_operand


def gather_nd(view: View) -> Rule | None:
    """Gather at as many data axes after the batch as the last index axis is long."""
    data, batch = axes_letters(view), view.integer("batch_dims", 0)
    depth = view.dim(1, view.rank(1) - 1)
    # the number of picked axes must be known: it decides which axes of the data remain
    if depth is None:
        return None
    picks = ascii_uppercase[: view.rank(1) - 1 - batch]
    left = data[:batch] + picks + "Z"
    right = data[:batch] + picks + data[batch + depth :]
    return Rule(
        f"{' '.join(data)}, {' '.join(left)} -> {' '.join(right)}",
        freeze=f"{data[batch : batch + depth]}{picks}Z",
    )


def scatter_nd(view: View) -> Rule | None:
    """Scatter to as many leading data axes as the last index axis is long."""
    data, depth = axes_letters(view), view.dim(1, view.rank(1) - 1)
    if depth is None:
        return None
    picks = ascii_uppercase[: view.rank(1) - 1]
    updates = picks + data[depth:]
    return Rule(
        f"{' '.join(data)}, {' '.join(picks + 'Z')}, {' '.join(updates)} -> {' '.join(data)}",
        freeze=f"{data[:depth]}{picks}Z",
    )


def by_element(view: View) -> Rule:
    """Gather or scatter along `axis` with one index per element."""
    data, axis = axes_letters(view), axis_attribute(view, 0, view.rank(0))
    picks, fixed = [], ""
    for i, name in enumerate(data):
        size = view.dim(0, i)
        # an axis of another length than that of the data selects a part of it
        if i != axis and size is not None and size == view.dim(1, i):
            picks.append(name)
        else:
            picks.append(name.upper())
            fixed += name + name.upper()
    names, index = " ".join(data), " ".join(picks)
    if view.op == "GatherElements":
        return Rule(f"{names}, {index} -> {index}", freeze=fixed)
    return Rule(f"{names}, {index}, {index} -> {names}", freeze=fixed)


def top_k(view: View) -> Rule:
    """Select the largest or smallest positions of `axis`, which is never cut."""
    names, axis = axes_letters(view), axis_attribute(view, -1, view.rank(0))
    right = " ".join("1" if i == axis else n for i, n in enumerate(names))
    count = ", K" if view.inputs > 1 else ""  # an attribute before opset 10
    return Rule(f"{' '.join(names)}{count} -> {right}, {right}", freeze=names[axis])


def tensor_scatter(view: View) -> Rule:
    """Write an update to positions of `axis` that differ per batch."""
    names, axis = list(axes_letters(view)), axis_attribute(view, -2, view.rank(0))
    update = " ".join(n.upper() if i == axis else n for i, n in enumerate(names))
    left = [" ".join(names), update, names[0]][: view.inputs]
    # letters of positions; the batch has the same in all operands
    fixed = names[axis] + names[axis].upper()
    return Rule(f"{', '.join(left)} -> {' '.join(names)}", freeze=fixed)


def one_hot(view: View) -> Rule:
    """Insert an axis of classes, which is never cut."""
    names = list(axes_letters(view))
    axis = view.integer("axis", -1) % (len(names) + 1)
    right = [*names[:axis], "1", *names[axis:]]
    depth = "D" if view.rank(1) else ""
    return Rule(f"{' '.join(names)}, {depth}, V -> {' '.join(right)}", freeze="DV")


def triangle(view: View) -> Rule:
    """Keep a triangle of matrices, whose rows and columns are never cut."""
    offset = "" if view.inputs < 2 or not view.rank(1) else "K"
    return Rule(f"... m n{', ' + offset if view.inputs > 1 else ''} -> ... m n", freeze="m n K")


def discrete_fourier(view: View) -> Rule | None:
    """Transform along `axis`; the last axis holds the real and imaginary part."""
    names = list(axes_letters(view))
    # before opset 20 the axis is an attribute, later an optional operand
    axis: int | None = view.integer("axis", 1) if view.opset < 20 else -2
    if view.inputs > 2:
        axis = axis_operand(view, 2, len(names))
    if axis is None:
        return None
    axis %= len(names)
    right = ["1" if i in (axis, len(names) - 1) else n for i, n in enumerate(names)]
    extra = ["", "J" if view.rank(1) else "", "K" if view.rank(2) else ""][1 : view.inputs]
    left = ", ".join([" ".join(names), *extra])
    return Rule(f"{left} -> {' '.join(right)}", freeze=f"{names[axis]}{names[-1]}JK")
