"""Composition of two cuts: channels kept by cut A and then by cut B, as one cut of the original.

Channels of the reduced model are matched to those of the original by their positions in the
weights. Group names cannot serve: groups may merge when an axis has shrunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from onnxprune.allocators.base import Constraints, widths
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import label
from onnxprune.surgery.cut import cut

Kept = Mapping[str, Sequence[int]]
Origin = tuple[tuple[str, int], ...]  # original (group, index) pairs of one channel
WeightAxis = tuple[str, int, int]  # (node, operand slot, axis) of a weight that has channels
GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)  # odd increment of splitmix64 (Steele et al. 2014)


@dataclass(frozen=True)
class Reduced:
    """A cut model, analyzed again, with the map from its channels to those of the original.

    Attributes
    ----------
    original
        Analysis of the original model.
    kept
        Channels of the original that the cut kept.
    analysis
        Analysis of the cut model.
    origin
        Group of the cut model -> per channel the original channels that it stands for. Groups
        without a counterpart in the original are left out; they stay intact.
    """

    original: Analysis
    kept: Kept
    analysis: Analysis
    origin: Mapping[str, tuple[Origin, ...]]

    def original_groups(self, name: str) -> set[str]:
        """Return the original groups that the channels of a group belong to."""
        return {group for group, _ in chain.from_iterable(self.origin[name])}

    def widths(self, name: str, constraints: Constraints) -> list[int]:
        """Return the widths of a group that give its original group an allowed width, descending.

        The last ones are below 1 if other groups hold channels of the same original group.
        """
        group = self.original.group(self.origin[name][0][0][0])
        left = len(self.kept.get(group.name, range(group.size)))
        others = left - self.analysis.group(name).size
        return [width - others for width in widths(group.size, constraints)]

    def compose(self, kept: Kept) -> dict[str, tuple[int, ...]]:
        """Return the channels of the original that remain if the cut model keeps `kept`."""
        left = {g.name: set(self.kept.get(g.name, range(g.size))) for g in self.original.groups}
        for name, indices in kept.items():
            # a channel of merged groups stands for several original ones, removed together
            keep = set(indices)
            for channel, origin in enumerate(self.origin.get(name, ())):
                if channel in keep:
                    continue
                for group, index in origin:
                    left[group].discard(index)
        return {
            g.name: tuple(sorted(left[g.name]))
            for g in self.original.groups
            if len(left[g.name]) < g.size
        }


def unreduced(original: Analysis) -> Reduced:
    """Return the original as its own reduced model, with nothing cut."""
    origin: dict[str, tuple[Origin, ...]] = {}
    for group in original.groups:
        origin[group.name] = tuple(((group.name, index),) for index in range(group.size))
    return Reduced(original, {}, original, origin)


def reduce_model(original: Analysis, kept: Kept, model: Model | None = None) -> Reduced:
    """Cut the original to `kept`, analyze the result, and map its channels to the original's.

    Parameters
    ----------
    model
        The cut model if it exists already, for example with repaired weights.
    """
    plan = original.plan(kept)
    analysis = analyze(cut(original, plan) if model is None else model, **original.options)
    analysis = analysis.at(original.counted_at.inputs)
    removed = original.removed(plan.kept)
    # a repair may add weights (a bias), which the original cannot match
    shared = {a for a, _ in _weight_axes(original)} & {a for a, _ in _weight_axes(analysis)}
    before = _compute_signatures(original, removed, shared)
    after = _compute_signatures(analysis, analysis.removed({}), shared)
    # coupled causes have equal signatures, so that one entry lists all channels removed together
    by_signature: dict[int, list[tuple[str, int]]] = {}
    for name, causes in original.causes.items():
        for index, cause in enumerate(causes.tolist()):
            if not removed[cause]:
                by_signature.setdefault(int(before[cause]), []).append((name, index))
    origin = {}
    for name, causes in analysis.causes.items():
        # a group made of new axes only has no original channels
        channels = [tuple(by_signature.get(int(after[c]), ())) for c in causes.tolist()]
        if all(channels):
            origin[name] = tuple(channels)
    return Reduced(original, plan.kept, analysis, origin)


def _weight_axes(analysis: Analysis) -> Iterator[tuple[WeightAxis, np.ndarray]]:
    """Yield the axes of weights that have channels, with the cause ids along each axis."""
    for use in analysis.uses:
        node = label(analysis.nodes[use.node])
        for axis, ids in enumerate(use.axes):
            if isinstance(ids, np.ndarray):
                yield (node, use.slot, axis), ids


def _compute_signatures(
    analysis: Analysis, removed: np.ndarray, shared: set[WeightAxis]
) -> np.ndarray:
    """Return a hash per cause of all its positions in the weights, (causes + 1,) uint64.

    Positions are counted among the channels that are kept, so that a cause has the same hash before
    and after the cut. Only the axes in `shared` count.
    """
    signatures = np.zeros(analysis.axes.causes + 1, np.uint64)
    for weight_axis, ids in _weight_axes(analysis):
        if weight_axis not in shared:
            continue
        table = analysis.axes.table(ids)[analysis.keep(ids, removed)]
        name = "\0".join(map(str, weight_axis))
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        start = np.uint64(int.from_bytes(digest, "little"))
        keys = _mix(start + np.arange(len(table), dtype=np.uint64) * GOLDEN_RATIO)
        # the sum does not depend on the order in which nodes use the cause
        np.add.at(signatures, table.ravel(), np.repeat(keys, table.shape[1]))
    return signatures


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply the finalizer of splitmix64, so that consecutive numbers become independent."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
