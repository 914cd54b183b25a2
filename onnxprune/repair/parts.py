"""Where to divide a network for a refit: parts of a few linear nodes, between places where as few activations as possible are alive.

Of several such places the one with the largest activation, which says most, and of these the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.repair.fits import Fit, depthwise
from onnxprune.statistics.segmented_run import SegmentedRun

FEWEST, MOST = 2, 8  # linear nodes of a part, depthwise ones not counted


@dataclass(frozen=True)
class Part:
    """Nodes [start, end) of the cut network. entries: activations that are there at the start; exits: those made here that are read behind it."""

    start: int
    end: int
    fits: tuple[Fit, ...]
    entries: tuple[str, ...]
    exits: tuple[str, ...]


def parts(cut: SegmentedRun, fits: Sequence[Fit]) -> list[Part]:
    """The fits in graph order, divided. A residual block is one part, because one activation is alive on both sides of it and more inside."""
    places = [cut.place(f.linear.out) for f in fits]
    wide = [
        not depthwise(cut.nodes[p], cut.model.weights[f.weight].shape)
        for f, p in zip(fits, places, strict=False)
    ]
    found, first, start = [], 0, 0
    while first < len(fits):
        choices, count = [], 0
        for last in range(first, len(fits)):
            count += wide[last]
            after = places[last + 1] if last + 1 < len(fits) else len(cut.nodes)
            place = min(
                range(after, places[last], -1), key=lambda p: (len(cut.live[p]), -cut.bytes_at(p))
            )
            if count >= FEWEST or last + 1 == len(fits):
                choices.append((len(cut.live[place]), last, place))
            if count == MOST:
                break
        _, last, end = min(choices)
        made = {o for n in cut.nodes[start:end] for o in n.output}
        found.append(
            Part(
                start,
                end,
                tuple(fits[first : last + 1]),
                tuple(sorted(cut.live[start])),
                tuple(sorted(cut.live[end] & made)),
            )
        )
        first, start = last + 1, end
    return found
