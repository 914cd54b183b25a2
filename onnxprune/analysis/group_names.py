"""Names of groups: the node that computes their channels, and which part of its axis they are.

A name depends on its group alone, so that options that freeze or open others change no name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.analysis.state import Record
from onnxprune.ir.nodes import label
from onnxprune.ir.weights import Weight
from onnxprune.types import Group, Site

_RECURRENT = ("LSTM", "GRU", "RNN")  # their gates repeat the channels along the axis


def find_lead(sites: Sequence[Site], weights: Mapping[str, Weight]) -> int:
    """Return the index of the site that a group is named after: its first producer.

    A layer is named by its weight, not by a bias or scale that is a site as well.
    """
    for i, site in enumerate(sites):
        if site.role == "produces" and len(weights[site.tensor].shape) > 1:
            return i
    return 0


def label_nodes(record: Record) -> list[str]:
    """Return a label per node; nodes of equal names are labeled by their outputs."""
    labels = [label(node) for node in record.nodes]
    counts = Counter(labels)
    return [
        next((o for o in node.output if o), own) if counts[own] > 1 else own
        for node, own in zip(record.nodes, labels, strict=True)
    ]


def spell_part(length: int, positions: np.ndarray, channels: np.ndarray, op: str) -> str:
    """Return which part of an axis a group is, "" if it is all of it.

    Parameters
    ----------
    length
        Length of the axis.
    positions
        Positions of the axis that carry channels of the group, ascending.
    channels
        Channel per position.
    op
        Operator that the axis belongs to.

    Returns
    -------
    part
        "/16:32" for a range of positions. Where the channels repeat along the axis: "/blocks" if
        each time they are several positions, as the heads of a projection of queries, keys and
        values, else "/dims", as those of each head, or "/positions" in each group of a convolution.

    Examples
    --------
    >>> spell_part(4, np.arange(4), np.arange(4), "Conv")
    ''
    >>> spell_part(8, np.arange(8), np.arange(8) % 4, "MatMul")
    '/dims'
    >>> spell_part(8, np.arange(8), np.arange(8) // 2 % 2, "MatMul")
    '/blocks'
    >>> spell_part(8, np.arange(4, 8), np.arange(4), "Conv")
    '/4:8'
    """
    positions, first = np.unique(positions, return_index=True)
    owners = channels[first]
    start, end = int(positions[0]), int(positions[-1]) + 1
    part = "" if (start, end) == (0, length) else f"/{start}:{end}"
    runs = 1 + int((np.diff(owners) != 0).sum())
    # without repetition, each channel is one run: a position, or an entire head or group
    if runs == len(np.unique(owners)) or op in _RECURRENT:
        return part
    if runs < len(owners):
        return f"{part}/blocks"
    return f"{part}/positions" if "Conv" in op else f"{part}/dims"


def number_equal(names: Sequence[str], keys: Sequence[Sequence[int]]) -> list[str]:
    """Return the names made unique by numbers, which follow the order of the keys.

    >>> number_equal(["a", "b", "a"], [[4], [0], [0]])
    ['a#2', 'b', 'a']
    """
    result = list(names)
    used: set[str] = set()
    for i in sorted(range(len(names)), key=lambda i: (names[i], list(keys[i]), i)):
        number = 1
        while result[i] in used:
            number += 1
            result[i] = f"{names[i]}#{number}"
        used.add(result[i])
    return result


def former_names(groups: Sequence[Group], weights: Mapping[str, Weight]) -> dict[str, Group]:
    """Return the names that plans and recipes of version 0.1 have for the groups."""
    seen: Counter[str] = Counter()
    names = {}
    for group in groups:
        base = group.sites[find_lead(group.sites, weights)].node
        seen[base] += 1
        names[base if seen[base] == 1 else f"{base}#{seen[base]}"] = group
    return names
