"""Partition of a network into blocks of a few linear nodes for a joint refit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.repair.fits import Fit, depthwise
from onnxprune.statistics.segmented_run import SegmentedRun

# Linear nodes per block, without depthwise ones. One node has nothing to be refitted jointly with;
# beyond eight, the joint problem has too many unknowns for a calibration set.
MIN_NODES, MAX_NODES = 2, 8


@dataclass(frozen=True)
class Block:
    """Consecutive nodes of the pruned network.

    Attributes
    ----------
    start, end
        Range of node indices, `end` excluded.
    fits
        Refitted nodes in the range.
    entries
        Activations that are live at the start.
    exits
        Activations that the block produces and later nodes consume.
    """

    start: int
    end: int
    fits: tuple[Fit, ...]
    entries: tuple[str, ...]
    exits: tuple[str, ...]


def partition(pruned: SegmentedRun, fits: Sequence[Fit]) -> list[Block]:
    """Divide the fits into blocks.

    A block ends where the fewest activations are live, so that its exits determine all that
    follows; a residual block stays in one piece, since two activations are live inside it. Of
    several such places the one with the largest activations is chosen, which carry the most
    information, and of these the last.

    Parameters
    ----------
    fits
        In graph order.
    """
    positions = [pruned.place(f.linear.out) for f in fits]
    counted = [
        not depthwise(pruned.nodes[p], pruned.model.weights[f.weight].shape)
        for f, p in zip(fits, positions, strict=True)
    ]
    blocks, first, start = [], 0, 0
    while first < len(fits):
        choices, count = [], 0
        for last in range(first, len(fits)):
            count += counted[last]
            following = positions[last + 1] if last + 1 < len(fits) else len(pruned.nodes)
            end = _find_best_end(pruned, positions[last], following)
            if count >= MIN_NODES or last + 1 == len(fits):
                choices.append((len(pruned.live[end]), last, end))
            if count == MAX_NODES:
                break
        _, last, end = min(choices)
        produced = {o for n in pruned.nodes[start:end] for o in n.output}
        blocks.append(
            Block(
                start,
                end,
                tuple(fits[first : last + 1]),
                tuple(sorted(pruned.live[start])),
                tuple(sorted(pruned.live[end] & produced)),
            )
        )
        first, start = last + 1, end
    return blocks


def _find_best_end(pruned: SegmentedRun, last: int, following: int) -> int:
    """Return the best end of a block between its last linear node and the following one."""
    return min(range(following, last, -1), key=lambda p: (len(pruned.live[p]), -pruned.bytes_at(p)))
