"""Weights that a file stores several times: copies of one layer with equal bytes.

Exporters that trace a layer once per call (heads on pyramid levels, siamese branches) store its
weight per call. Such copies become one initializer, which is then cut and refitted as any shared
weight, unless coupling them would take freedom away: a chain of equal layers, where one copy reads
what another one computes, keeps its copies apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

import numpy as np

from onnxprune.analysis.causes import Causes
from onnxprune.analysis.sharing import LEAST_RANK, tie_uses
from onnxprune.analysis.state import FLOATS, Record, Use
from onnxprune.ir.edit import remove_initializers
from onnxprune.ir.linear import LINEAR_OPS, WeightLayout
from onnxprune.ir.model import Model
from onnxprune.ir.nodes import STANDARD_DOMAINS, nested
from onnxprune.ir.weights import Weight

LEAST_VALUES = 16  # smaller weights are equal by chance
MOST_TRIED = 1 << 28  # positions of axes in all trials together, some seconds
_SAMPLED = 64  # values that are compared before all bytes are
# Share of distinct values in a sample of a trained weight; constants of formulas repeat theirs
_LEAST_DISTINCT = 0.5

Copies = Mapping[str, tuple[str, ...]]  # weight -> its copies


def find_copies(record: Record) -> Copies:
    """Return the copies of each weight whose coupling neither freezes nor merges channels.

    Sets are tried in graph order, each on top of those that were accepted before. After MOST_TRIED
    positions in all trials, the copies that are left stay apart.

    Parameters
    ----------
    record
        Finished pass, with the uses of shared weights tied.
    """
    axes = _Axes([a for use in record.uses for a in use.axes if isinstance(a, np.ndarray)])
    copies: dict[str, tuple[str, ...]] = {}
    causes, left = record.causes, MOST_TRIED
    for similar in _similar_sets(record):
        left -= len(axes.ids)
        if left < 0:
            break
        # before all bytes are read, which may be gigabytes
        if _couple(causes, [u for uses in similar.values() for u in uses], axes) is None:
            continue
        for names in _split_by_bytes(record, similar):
            coupled = _couple(causes, [u for name in names for u in similar[name]], axes)
            if coupled is not None:
                causes = coupled
                copies[names[0]] = tuple(names[1:])
    return copies


class _Axes:
    """Axes that must keep their freedom, and their ids in sequence with the axis of each."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays
        self.ids = np.concatenate([np.zeros(0, np.int64), *arrays])
        self.owner = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])

    def changed(self, before: Causes, after: Causes) -> list[np.ndarray]:
        """Return the axes of which a position may have other causes."""
        differ = before.differ(self.ids, after)
        return [self.arrays[i] for i in np.unique(self.owner[differ])]


def _couple(causes: Causes, uses: Sequence[Use], axes: _Axes) -> Causes | None:
    """Return the causes with the axes of uses coupled; None if that takes freedom from `axes`."""
    arrays = [[a for a in use.axes if isinstance(a, np.ndarray)] for use in uses]
    # inputs and outputs of one use must not become the same channels
    layers = [np.concatenate(ids) for ids in arrays if ids]
    if not any(free for free, _ in _count_free(causes, layers)):
        return None  # nothing can be cut
    # on a copy, so that a set that takes freedom away leaves no binding behind
    trial = causes.copy()
    tie_uses(trial, uses)
    touched = [*layers, *axes.changed(causes, trial)]
    return trial if _count_free(trial, touched) == _count_free(causes, touched) else None


def _count_free(causes: Causes, axes: list[np.ndarray]) -> list[tuple[int, int]]:
    """Return, per axis, the number of distinct causes and that of frozen positions."""
    found, tables = causes.table(axes)
    counts = []
    for table in tables:
        free = table < len(found)
        counts.append((len(np.unique(table[free])), int((~free.any(1)).sum())))
    return counts


def _similar_sets(record: Record) -> Iterator[dict[str, list[Use]]]:
    """Yield the uses by weight of each set of several trained weights with an equal sample."""
    alike: dict[tuple[object, ...], dict[str, list[Use]]] = {}
    for name, uses in _layers(record).items():
        weight = record.model.weights[name]
        layout = WeightLayout.of(record.nodes[uses[0].node])
        # the layout too: equal bytes with other groups or transposed are another layer
        alike.setdefault((weight.dtype, weight.shape, layout), {})[name] = uses
    for candidates in alike.values():
        if len(candidates) < 2:
            continue
        sampled: dict[bytes, list[str]] = {}
        for name in candidates:
            sampled.setdefault(_sample(record.model.weights[name]).tobytes(), []).append(name)
        for names in sampled.values():
            if len(names) > 1 and _is_trained(record.model.weights[names[0]]):
                yield {name: candidates[name] for name in names}


def _layers(record: Record) -> dict[str, list[Use]]:
    """Return the uses of the weights that are read by linear layers alone."""
    graphs = list(nested(record.model.proto.graph))
    # values of these may be set by a caller, or are results
    excluded = {i.name for g in graphs for i in (*g.input, *g.output)}
    uses: dict[str, list[Use]] = {}
    for use in record.uses:
        uses.setdefault(use.tensor, []).append(use)
    layers = {}
    for name, same in uses.items():
        weight = record.model.weights[name]
        if name in excluded or weight.dtype not in FLOATS or len(weight.shape) < LEAST_RANK:
            continue
        if prod(weight.shape) >= LEAST_VALUES and all(_is_layer(record, u) for u in same):
            layers[name] = same
    return layers


def _is_layer(record: Record, use: Use) -> bool:
    """Return whether a use is the weight of a linear layer."""
    node = record.nodes[use.node]
    return node.op_type in LINEAR_OPS and node.domain in STANDARD_DOMAINS and use.slot == 1


def _sample(weight: Weight) -> np.ndarray:
    """Return some values; of a weight in a file, only their pages are read."""
    values = weight.array().reshape(-1)
    # spread over all of the weight, so that a difference in a part of it shows as well
    step = max(len(values) // _SAMPLED, 1)
    return values[::step][:_SAMPLED]


def _is_trained(weight: Weight) -> bool:
    """Return whether most values of a sample differ."""
    sample = _sample(weight)
    return len(np.unique(sample)) >= _LEAST_DISTINCT * sample.size


def _split_by_bytes(record: Record, names: Iterable[str]) -> list[list[str]]:
    """Return the sets of several names whose weights are equal; one is in memory at a time."""
    sets: dict[bytes, list[str]] = {}
    for name in names:
        digest = hashlib.sha256(record.model.weights[name].raw()).digest()
        sets.setdefault(digest, []).append(name)
    return [equal for equal in sets.values() if len(equal) > 1]


def share_copies(model: Model, copies: Copies) -> Model:
    """Return the model with one initializer in place of each weight and its copies."""
    first = {copy: name for name, others in copies.items() for copy in others}
    edited = model.edit()
    for graph in nested(edited.proto.graph):
        for node in graph.node:
            for slot, name in enumerate(node.input):
                if name in first:
                    node.input[slot] = first[name]
    remove_initializers(edited, first)
    return edited.freeze()


def describe_copies(copies: Copies) -> Iterator[str]:
    """Yield a sentence per weight that was stored several times."""
    for name, others in copies.items():
        yield (
            f"{len(others) + 1} weights have equal bytes and are cut, refitted and stored as one: "
            f"{', '.join((name, *others))}; --untie prunes each on its own"
        )
