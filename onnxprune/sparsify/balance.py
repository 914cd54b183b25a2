"""Distribution of zeros over layers by their effect on the model's outputs.

One layer at a time loses its lowest-scored weights, up to a small error and up to the requested
share, is refitted with its bias, and the network after it is run. A power law through both
damages predicts the cost of every further weight; its exponent is at least 1, because at large
shares the damage saturates, which would hide it. The score of a weight becomes the divergence
that its removal adds once all weights with lower scores are removed. These scores compare across
layers.

A layer that feeds other sparse layers does more damage than it does alone. The factor is measured
once, with all layers sparse. The smallest tensors, such as those of depthwise convolutions, have
few weights to remove and stay intact.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.allocators.output_divergence import divergence_after, original_values
from onnxprune.ir.extract import reads
from onnxprune.ir.io import Model
from onnxprune.ir.weights import Weight
from onnxprune.sparsify.inputs import InputStatistics
from onnxprune.sparsify.layout import LinearWeight
from onnxprune.sparsify.masks import Rows, choose
from onnxprune.sparsify.refit import sparse_weights
from onnxprune.statistics.segmented_run import SegmentedRun

# Relative output error of the first measurement: damage is proportional to smaller errors, and
# lost in rounding below much smaller ones.
PROBE_ERROR = 0.003
# Share of all weights below which a tensor is measured at that error only: it has few to remove.
LARGE_SHARE = 0.005
# Share of the weights to keep that the smallest tensors may hold together and stay intact.
INTACT_SHARE = 0.05
# Candidate factors on the damage of tensors that feed other sparse ones. Measured alone, a tensor
# does not show that errors of layers add up, cancel, and pass through sparse weights.
AMPLIFICATIONS = (1.0, 2.0, 4.0, 8.0, 16.0)
MAX_POWER = 4.0  # a steeper law comes from a first damage that is nearly zero
_TINY = float(np.finfo(np.float64).tiny)


def intact_tensors(sizes: Mapping[str, int], amount: float) -> set[str]:
    """Return the smallest tensors, which lose no weights; equal sizes are treated alike.

    Parameters
    ----------
    sizes
        Weights by tensor.
    amount
        Share of all weights to remove.
    """
    largest, limit = 0, INTACT_SHARE * (1 - amount) * sum(sizes.values())
    for size in sorted(set(sizes.values())):
        if sum(n for n in sizes.values() if n <= size) > limit:
            break
        largest = size
    return {name for name, size in sizes.items() if size <= largest}


def last_tensors(model: Model, targets: Sequence[LinearWeight]) -> set[str]:
    """Return the tensors from which a path leads to an output past all other tensors."""
    tensor_of = {n.output[0]: t.tensor for t in targets for n in t.nodes}
    needed = {o.name for o in model.proto.graph.output}
    result: set[str] = set()
    for node in reversed(model.proto.graph.node):
        if needed.isdisjoint(node.output):
            continue
        if node.output[0] in tensor_of:
            result.add(tensor_of[node.output[0]])
        else:
            needed |= reads(node)
    return result


def balance(
    model: Model,
    targets: Sequence[LinearWeight],
    scores: Rows,
    statistics: Mapping[str, InputStatistics],
    batches: list[dict[str, np.ndarray]],
    amount: float,
    *,
    threads: int = 1,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, np.ndarray]:
    """Return the masks (True = kept) that change the outputs least, by tensor.

    Parameters
    ----------
    model
        Dense model.
    targets
        Tensors to make sparse.
    scores
        tensor -> (groups, outputs, columns), relative to the tensor's output; higher = keep.
        Scores of tensors that stay intact are not read.
    statistics
        Input statistics of every tensor that does not stay intact.
    batches
        Feeds that the statistics have not seen; held in memory with the activations of one layer.
    amount
        Share of all weights to remove.
    """
    intact = intact_tensors({name: s.size for name, s in scores.items()}, amount)
    expected = original_values(model, batches, threads)
    damage = _Damage(model, statistics, expected, SegmentedRun(model, batches, threads=threads))
    start = SegmentedRun(model, batches, threads=threads)
    # the run advances in graph order
    sparse = sorted((t for t in targets if t.tensor not in intact), key=damage.position)
    steps = len(sparse) + len(AMPLIFICATIONS)
    # infinite costs keep every weight
    costs = {name: np.full(scores[name].shape, np.inf) for name in intact}
    large = LARGE_SHARE * sum(s.size for s in scores.values())
    for i, target in enumerate(sparse):
        score = scores[target.tensor]
        masks = _probe_masks(score, amount if score.size >= large else 0.0)
        points = [(float(score[~mask].sum()), damage.of_layer(target, mask)) for mask in masks]
        costs[target.tensor] = marginal_damage(score, points)
        progress((i + 1) / steps)
    last = last_tensors(model, targets)
    best: dict[str, np.ndarray] = {}
    least = np.inf
    # the damage has one minimum over the factors: stop at the first factor that does not reduce it
    for factor in AMPLIFICATIONS:
        scaled = {
            t.tensor: costs[t.tensor] * (1.0 if t.tensor in last else factor) for t in targets
        }
        kept = choose(scaled, amount, "global")
        total = damage.of_network(sparse, kept, start)
        if total >= least:
            break
        best, least = kept, total
    progress(1.0)
    return best


@dataclass
class _Damage:
    """Divergence of the outputs that zeros cause.

    Attributes
    ----------
    model : Model
        Dense model.
    statistics : mapping
        Input statistics by tensor, for refits.
    expected : list of dict
        Outputs of the dense model, per batch.
    run : SegmentedRun
        Advances with the layers that are measured.
    """

    model: Model
    statistics: Mapping[str, InputStatistics]
    expected: list[dict[str, np.ndarray]]
    run: SegmentedRun

    def position(self, target: LinearWeight) -> int:
        """Return the index of the first node that reads the tensor."""
        return min(self.run.place(n.output[0]) for n in target.nodes)

    def of_layer(self, target: LinearWeight, kept: np.ndarray) -> float:
        """Return the damage of one sparse tensor; tensors must come in graph order."""
        self.run.advance(self.position(target))
        changed = {**self.model.weights, **self._refit(target, kept)}
        sparse = replace(self.model, weights=changed)
        return divergence_after(self.run, sparse, self.run.nodes[self.run.at :], self.expected)

    def of_network(
        self, targets: Sequence[LinearWeight], kept: Mapping[str, np.ndarray], start: SegmentedRun
    ) -> float:
        """Return the damage of all tensors together; `start` has not advanced."""
        changed = [self._refit(t, kept[t.tensor]) for t in targets]
        sparse = replace(self.model, weights=dict(ChainMap(*changed, dict(self.model.weights))))
        return divergence_after(start, sparse, start.nodes, self.expected)

    def _refit(self, target: LinearWeight, kept: np.ndarray) -> dict[str, Weight]:
        """Return the sparse, refitted weight and its bias."""
        moments = self.statistics[target.tensor].moments()
        return sparse_weights(self.model, target, kept, moments)


def marginal_damage(scores: np.ndarray, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return the damage that each weight's removal adds after all lower-scored ones.

    The law is damage ~ (sum of removed scores) ** power, through the points, with power >= 1.

    Parameters
    ----------
    scores
        Any shape; higher = keep.
    points
        One or two pairs (sum of the removed scores, damage), ascending.

    Returns
    -------
    numpy.ndarray
        In the shape of `scores`.
    """
    (first, damage), (last, last_damage) = points[0], points[-1]
    first, damage = max(first, _TINY), max(damage, _TINY)
    power = 1.0
    if last > first:
        power = max(1.0, float(np.log(max(last_damage, damage) / damage) / np.log(last / first)))
    # damage of each weight is the increase of the law from the previous sum
    order = np.argsort(scores, axis=None, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(scores.reshape(-1)[order])])
    result = np.empty(scores.size)
    result[order] = np.diff(damage * (sums / first) ** min(power, MAX_POWER))
    return result.reshape(scores.shape)


def _probe_masks(scores: np.ndarray, amount: float) -> list[np.ndarray]:
    """Return masks that remove a small error and `amount` of the weights (0 = only the first)."""
    order = np.argsort(scores, axis=None, kind="stable")
    small = 1 + int(np.searchsorted(np.cumsum(scores.reshape(-1)[order]), PROBE_ERROR))
    masks = []
    for count in sorted({small, round(amount * scores.size) or small}):
        kept = np.ones(scores.size, bool)
        kept[order[:count]] = False
        masks.append(kept.reshape(scores.shape))
    return masks
