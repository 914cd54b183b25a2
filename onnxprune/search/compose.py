"""What a second cut means on the model before the first: cut A, then cut B of what is left, is cut A or B of the original.

Channels are found again by where they lie in the weights, not by names of groups, which may merge when an axis has shrunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.allocators.base import Constraints, widths
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import label
from onnxprune.surgery.cut import cut

Kept = Mapping[str, Sequence[int]]
Places = tuple[
    tuple[str, int], ...
]  # the original channels (group, index) that go with one of a cut model
Place = tuple[str, int, int]  # an axis of a weight that channels lie on: (node, slot, axis)
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Smaller:
    """A cut model, analyzed again.

    analysis: of the cut model; kept: what the cut kept of the original; origin: group of the cut model -> for each channel the original channels
    (group, index) that go with it. Groups that are none of the original's are left out: they stay whole.
    """

    original: Analysis
    kept: Kept
    analysis: Analysis
    origin: Mapping[str, tuple[Places, ...]]

    def groups(self, name: str) -> set[str]:
        """The original groups that a group's channels lie in."""
        return {group for places in self.origin[name] for group, _ in places}

    def widths(self, name: str, constraints: Constraints) -> list[int]:
        """Kept counts of a group with which the original's has one that it may have, descending; the last ones below 1 where others have channels of it."""
        group = self.original.group(self.origin[name][0][0][0])
        others = len(self.kept.get(group.name, range(group.size))) - self.analysis.group(name).size
        return [width - others for width in widths(group.size, constraints)]

    def composed(self, kept: Kept) -> dict[str, tuple[int, ...]]:
        """What the original keeps when the cut model keeps this."""
        left = {g.name: set(self.kept.get(g.name, range(g.size))) for g in self.original.groups}
        for name, indices in kept.items():
            stay = set(indices)
            for channel, places in enumerate(self.origin.get(name, ())):
                if channel not in stay:
                    for group, index in places:
                        left[group].discard(index)
        return {
            g.name: tuple(sorted(left[g.name]))
            for g in self.original.groups
            if len(left[g.name]) < g.size
        }


def unchanged(original: Analysis) -> Smaller:
    """The model as it came, nothing cut."""
    return Smaller(
        original,
        {},
        original,
        {g.name: tuple(((g.name, i),) for i in range(g.size)) for g in original.groups},
    )


def smaller(original: Analysis, kept: Kept, model: Model | None = None) -> Smaller:
    """The cut model and the way back.

    Parameters
    ----------
    model
        The cut model where it is there already, such as one with repaired weights.
    """
    plan = original.plan(kept)
    again = analyze(cut(original, plan) if model is None else model, **original.options)
    gone, shared = (
        original.removed(plan.kept),
        {p for p, _ in _places(original)} & {p for p, _ in _places(again)},
    )
    there: dict[int, list[tuple[str, int]]] = {}
    signatures = _signatures(original, gone, shared)
    for name, causes in original.causes.items():
        for index, cause in enumerate(causes.tolist()):
            if not gone[cause]:
                there.setdefault(int(signatures[cause]), []).append((name, index))
    here = _signatures(again, again.removed({}), shared)
    origin = {}
    for name, causes in again.causes.items():
        found = [tuple(there.get(int(here[c]), ())) for c in causes.tolist()]
        if all(found):
            origin[name] = tuple(found)
    return Smaller(original, plan.kept, again, origin)


def _places(analysis: Analysis) -> Iterator[tuple[Place, np.ndarray]]:
    """Where channels lie in the weights, with the ids of each axis."""
    for use in analysis.record.uses:
        yield from (
            ((label(analysis.record.nodes[use.node]), use.slot, axis), ids)
            for axis, ids in enumerate(use.axes)
            if isinstance(ids, np.ndarray)
        )


def _signatures(analysis: Analysis, gone: np.ndarray, shared: set[Place]) -> np.ndarray:
    """A number for each cause by all places of the weights that it lies in, positions counted among those that stay; (causes + 1,) uint64.

    shared: the places that count; a repair may have given a node a bias, or a longer one.
    """
    found = np.zeros(analysis.axes.causes + 1, np.uint64)
    for place, ids in _places(analysis):
        if place not in shared:
            continue
        table = analysis.axes.table(ids)[analysis.keep(ids, gone)]
        name = "\0".join(map(str, place))
        start = np.uint64(
            int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        )
        keys = _mixed(start + np.arange(len(table), dtype=np.uint64) * _ODD)
        np.add.at(found, table.ravel(), np.repeat(keys, table.shape[1]))
    return found


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: neighboring numbers become unrelated ones."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
