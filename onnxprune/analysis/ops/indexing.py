"""Gather and scatter by computed indices."""

from __future__ import annotations

from string import ascii_uppercase

from onnxprune.analysis.rule import Rule, View, axes_letters, axis_attribute


def gather_nd(view: View) -> Rule | None:
    """Gather at as many data axes after the batch as the last index axis is long."""
    data, batch = axes_letters(view), view.integer("batch_dims", 0)
    depth = view.dim(1, view.rank(1) - 1)
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
