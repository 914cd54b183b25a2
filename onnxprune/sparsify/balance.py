"""What making each layer sparse does to the model's outputs, so that the amount is spent where they change least.

One layer at a time loses its least weights, up to a small error and up to the share that is asked for, is refitted with its bias, and the rest of
the network runs behind it. A power law through both damages, never below a straight line from the first (at large shares damage saturates, which
would hide it), says what each further weight costs: a weight's score becomes the divergence that its removal adds, the least ones gone before it,
and weights of all layers compare. How much dearer layers are that have others behind them is measured once more, with all layers sparse.
The smallest tensors, such as those of depthwise convolutions, have little to give and stay whole.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.allocators.divergence import divergence_behind
from onnxprune.ir.extract import reads
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.sparsify.inputs import Reading
from onnxprune.sparsify.layout import Target
from onnxprune.sparsify.masks import Rows, choose
from onnxprune.sparsify.refit import resolved
from onnxprune.statistics.segmented_run import SegmentedRun

ERROR = 0.003  # of what a tensor gives: so small that damage grows with it, so large that it is no rounding
LARGE = 0.005  # of all weights: smaller tensors are measured at the small error only, for they have little to give
WHOLE = 0.05  # of the weights that are to stay: the smallest tensors, as long as they are no more than that together, are not touched
# Damage counts so many times where further weights lie between a tensor and the outputs, whichever measures best with all tensors sparse: measured alone,
# it does not show that errors of layers add up, cancel, and are carried on by weights that are sparse themselves.
PASSED_ON = (1.0, 2.0, 4.0, 8.0, 16.0)
MOST_POWER = 4.0  # steeper is noise of a first damage that is next to none
_TINY = float(np.finfo(np.float64).tiny)


def whole(sizes: Mapping[str, int], amount: float) -> set[str]:
    """Tensors that lose nothing where a share of all weights is to go; of the same size all or none."""
    least, stays = 0, WHOLE * (1 - amount) * sum(sizes.values())
    for size in sorted(set(sizes.values())):
        if sum(n for n in sizes.values() if n <= size) > stays:
            break
        least = size
    return {name for name, size in sizes.items() if size <= least}


def closing(model: Model, found: Sequence[Target]) -> set[str]:
    """Tensors with a node that no other of these stands behind: from it a way leads to the outputs past all others."""
    tensor_of = {n.output[0]: t.tensor for t in found for n in t.nodes}
    wanted = {o.name for o in model.proto.graph.output}
    out: set[str] = set()
    for node in reversed(model.proto.graph.node):
        if wanted.isdisjoint(node.output):
            continue
        if node.output[0] in tensor_of:
            out.add(tensor_of[node.output[0]])
        else:
            wanted |= reads(node)
    return out


def balanced(
    model: Model,
    found: Sequence[Target],
    scores: Rows,
    readings: Mapping[str, Reading],
    batches: list[dict[str, np.ndarray]],
    amount: float,
    *,
    threads: int = 1,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, np.ndarray]:
    """True where a weight stays, by tensor.

    Parameters
    ----------
    scores
        tensor -> (groups, outputs, columns), relative to what the tensor gives; those of tensors that stay whole are not looked at.
    batches
        Feeds that the readings have not seen; kept in memory with the activations of one place.
    amount
        Share of all weights that is to go.
    """
    session = Session(model, threads=threads)
    expected = [session.run(b) for b in batches]
    start, run = (
        SegmentedRun(model, batches, threads=threads),
        SegmentedRun(model, batches, threads=threads),
    )
    total, untouched = (
        sum(s.size for s in scores.values()),
        whole({n: s.size for n, s in scores.items()}, amount),
    )
    out = {n: np.full(scores[n].shape, np.inf) for n in untouched}
    wanted = sorted(
        (t for t in found if t.tensor not in untouched),
        key=lambda t: min(run.place(n.output[0]) for n in t.nodes),
    )
    for i, target in enumerate(wanted):
        name = target.tensor
        run.advance(min(run.place(n.output[0]) for n in target.nodes))
        points = []
        for mask in _probed(scores[name], amount if scores[name].size >= LARGE * total else 0.0):
            changed = replace(
                model,
                weights={
                    **model.weights,
                    **resolved(model, target, mask, readings[name].moments()),
                },
            )
            points.append(
                (
                    float(scores[name][~mask].sum()),
                    divergence_behind(run, changed, run.nodes[run.at :], expected),
                )
            )
        out[name] = added(scores[name], points)
        progress((i + 1) / (len(wanted) + len(PASSED_ON)))
    last, best, least = closing(model, found), {}, np.inf
    for factor in PASSED_ON:
        kept = choose(
            {t.tensor: out[t.tensor] * (1.0 if t.tensor in last else factor) for t in found},
            amount,
            "global",
        )
        weights = [resolved(model, t, kept[t.tensor], readings[t.tensor].moments()) for t in wanted]
        damage = divergence_behind(
            start,
            replace(model, weights=dict(ChainMap(*weights, dict(model.weights)))),
            start.nodes,
            expected,
        )
        if damage >= least:
            break
        best, least = kept, damage
    progress(1.0)
    return best


def added(scores: np.ndarray, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """What each weight's removal adds to the damage, all of lower score gone before it, in the shape of `scores`.

    Parameters
    ----------
    points
        (sum of the scores that went, damage), one or two, ascending. The law is damage ~ sum ** power through them, power at least 1.
    """
    (first, damage), (last, more) = points[0], points[-1]
    first, damage = max(first, _TINY), max(damage, _TINY)
    power = (
        max(1.0, float(np.log(max(more, damage) / damage) / np.log(last / first)))
        if last > first
        else 1.0
    )
    order = np.argsort(scores, axis=None, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(scores.reshape(-1)[order])])
    out = np.empty(scores.size)
    out[order] = np.diff(damage * (sums / first) ** min(power, MOST_POWER))
    return out.reshape(scores.shape)


def _probed(scores: np.ndarray, amount: float) -> list[np.ndarray]:
    """True where a weight stays in a measurement: of a small error, and of the share that is asked for (0: not)."""
    order = np.argsort(scores, axis=None, kind="stable")
    small = 1 + int(np.searchsorted(np.cumsum(scores.reshape(-1)[order]), ERROR))
    masks = []
    for count in sorted({small, round(amount * scores.size) or small}):
        kept = np.ones(scores.size, bool)
        kept[order[:count]] = False
        masks.append(kept.reshape(scores.shape))
    return masks
