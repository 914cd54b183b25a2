"""Damage of each group alone to the model's outputs, measured on held-out calibration inputs.

Per group a few widths are measured, with the consumers refitted in closed form; the criterion's
error curve interpolates all other widths. Each measurement runs the part of the network after the
group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from onnxprune.allocators.base import Ranking, WidthStep, digest_inputs, ordered
from onnxprune.allocators.output_divergence import divergence_after, original_values
from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.criteria.elimination import inverse, refit_weight
from onnxprune.criteria.memo import Kind
from onnxprune.criteria.reconstruction import channel_columns, moments
from onnxprune.criteria.refit import refit_without
from onnxprune.data.dataset import samples_of
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel
from onnxprune.statistics.moments import InputMoments, ProductMoments
from onnxprune.statistics.segmented_run import SegmentedRun
from onnxprune.types import Scores

# Measured shares of the removable channels. Twice as many points leave 3 to 7 % less divergence on
# held-out images and take twice the time.
LEVELS = (0.5, 1.0)
# A removed branch is measured on one of this many batches. This third point of its group then takes
# an eighth more time instead of half.
BRANCH_EVERY = 4
# Gate samples: as many as MAX_MACS of all runs (half of the network each) allow, at least
# MIN_SAMPLES.
MAX_MACS, MIN_SAMPLES = 4e12, 32
# Factor on the damage of a group that several nodes produce (a residual stream): refitting the
# nodes between the cut and the output compensates for less of it than for a branch's. Chosen by KL
# on calibration images of a CIFAR ResNet-20 that were not used otherwise.
STREAM_FACTOR = 2.0
MAX_INVERSES = 64  # kept at a time; a group has fewer consumers
_TINY = 1e-12
_DAMAGE = Kind[np.ndarray]("damage of groups")


def divergence(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> Ranking:
    """Compute damage as the increase of the output divergence by a step.

    The divergence is between the original's outputs and those with this group alone pruned and its
    consumers refitted (see `OutputDivergence`), summed over outputs. It counts STREAM_FACTOR times
    for groups that several nodes produce.
    """
    analysis, factors = context.analysis, {}
    for name in {step.group for step in steps}:
        producers = {m.site.node for m in analysis.members(name) if m.site.role == "produces"}
        factors[name] = STREAM_FACTOR if len(producers) > 1 else 1.0
    damage = _measure_damage(context, scores, steps)
    return Ranking(damage * np.array([factors[step.group] for step in steps]), True)


def unweighted(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> Ranking:
    """Compute the damage of `divergence` without the factor on residual streams."""
    return Ranking(_measure_damage(context, scores, steps), True)


def _measure_damage(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> np.ndarray:
    """Return the (steps,) increase of the divergence, measured once per context."""
    return context.memoize(
        _DAMAGE, lambda: _measure_groups(context, scores, steps), digest_inputs(scores, steps)
    )


def _measure_groups(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> np.ndarray:
    """Return the (steps,) increase of the divergence by each step."""
    analysis = context.analysis
    members: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        members.setdefault(step.group, []).append(i)
    statistics, pairs, _ = moments(context)
    probe = _Probe(context, [*statistics.values(), *pairs], len(members))
    damage = np.zeros(len(steps))
    for name in sorted(members, key=probe.position):
        indices = members[name]
        removed = np.array([analysis.group(name).size - steps[i].target for i in indices])
        curve = _damage_curve(probe, name, np.asarray(scores[name]), removed)
        damage[indices] = np.diff(curve, prepend=0.0)
        context.progress(
            _share_done(len(probe.done) / len(members)),
            f"{len(probe.done)} of {len(members)} groups measured; --fast skips it",
        )
    return damage


def _share_done(groups: float) -> float:
    """Return the share of the time after a share of the groups.

    Part of it is equal for all groups; the rest runs the network after the group.
    """
    return 0.5 * groups + 0.5 * (1 - (1 - groups) ** 2)


def _damage_curve(probe: _Probe, name: str, scores: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Return the divergence of a group at each number of removed channels.

    Parameters
    ----------
    scores
        (channels,) scores of the group.
    removed
        Numbers of removed channels, ascending; equal to all channels where the branch is removed.
    """
    order = ordered(scores)
    # error[i]: the criterion's error with i + 1 channels removed
    error = np.cumsum(np.maximum(scores[order], 0.0))
    partial = removed[removed < len(order)]
    levels = [max(round(level * len(partial)) - 1, 0) for level in LEVELS if len(partial)]
    points = np.unique([partial[i] for i in levels]).astype(np.int64)
    measured = np.array([probe.measure(name, order[:count]) for count in points])
    if len(partial) < len(removed):
        points = np.append(points, len(order))
        measured = np.append(measured, probe.measure(name, order, BRANCH_EVERY))
    # removing more channels cannot help; smaller values are measurement noise
    rising = np.maximum.accumulate(np.maximum(measured, 0.0))
    return _interpolate(error[points - 1], rising, error[removed - 1])


def _interpolate(error: np.ndarray, measured: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the divergence at other errors.

    Linear between logarithms of the measured points, proportional to the error below the first.

    Parameters
    ----------
    error, measured
        Errors and divergences of the measured points, ascending.
    at
        Errors to interpolate at.
    """
    x, y, x_at = (np.log(np.maximum(v, _TINY)) for v in (error, measured, at))
    result = np.interp(x_at, x, y)
    below = x_at < x[0]
    result[below] = y[0] + (x_at[below] - x[0])
    return np.maximum.accumulate(np.exp(result))


@dataclass(frozen=True)
class _PlacedConsumer:
    """Consumer of a group.

    Attributes
    ----------
    position
        Index in the node list.
    item
        Moments of its input.
    index
        (channels, m) columns of each channel.
    """

    position: int
    item: InputMoments | ProductMoments
    index: np.ndarray


class _Probe:
    """Measures the divergence of pruned groups, which must come in graph order.

    Attributes
    ----------
    batches
        Gate samples.
    expected
        The original's values on them, of all tensors that are compared.
    run
        The original's activations before the current group's first consumer.
    done
        Names of the groups measured so far.
    """

    def __init__(
        self, context: Context, items: Sequence[InputMoments | ProductMoments], groups: int
    ) -> None:
        self.analysis: Analysis = context.analysis
        self.items = items
        self.batches = _take_gate_batches(context, groups)
        self.expected = original_values(
            self.analysis.model, self.batches, context.threads, self.analysis.shapes
        )
        self.run = SegmentedRun(
            self.analysis.model, self.batches, threads=context.threads, shapes=self.analysis.shapes
        )
        self.done: set[str] = set()
        self._inverses: dict[tuple[int, int], np.ndarray] = {}
        self._group = ""
        self._consumers: list[_PlacedConsumer] = []

    def consumers(self, name: str) -> Iterator[_PlacedConsumer]:
        """Yield the consumers of a group."""
        causes = self.analysis.causes[name]
        for item in self.items:
            index = channel_columns(self.analysis, item.ids, causes)
            position = self.run.place(self.analysis.nodes[item.node].output[0])
            if index is not None and position >= 0:
                yield _PlacedConsumer(position, item, index)

    def position(self, name: str) -> int:
        """Return the position of a group's first consumer in the node list."""
        return min((c.position for c in self.consumers(name)), default=0)

    def measure(self, name: str, removed: np.ndarray, every: int = 1) -> float:
        """Return the divergence with channels removed and the consumers refitted.

        Parameters
        ----------
        removed
            Channels of the group.
        every
            Use one of this many batches.
        """
        if name != self._group:
            self._group, self._consumers = name, list(self.consumers(name))
            self.run.advance(self.position(name))
            self.done.add(name)
        model, nodes = self._refit_consumers(removed)
        return divergence_after(self.run, model, nodes, self.expected, every)

    def _refit_consumers(self, removed: np.ndarray) -> tuple[Model, list[NodeProto]]:
        """Return the network with refitted consumers, and its nodes from the run's position on."""
        model = self.analysis.model.edit()
        nodes = list(model.proto.graph.node)[self.run.at :]
        # look up nodes first: insertions shift positions
        consumers = [(nodes[c.position - self.run.at], c) for c in self._consumers]
        for node, consumer in consumers:
            item, columns = consumer.item, consumer.index[removed].ravel()
            if isinstance(item, InputMoments):
                self._refit_linear(model, nodes, node, item, columns)
            else:
                self._refit_product(model, nodes, node, item, columns)
        return model.freeze(), nodes

    def _refit_product(
        self,
        model: EditableModel,
        nodes: list[NodeProto],
        node: NodeProto,
        item: ProductMoments,
        removed: np.ndarray,
    ) -> None:
        """Insert a factor per channel on the first operand of a product of activations."""
        ones = np.ones((1, len(item.xx)))
        gain = refit_weight(ones, self._get_inverse(item, 0), removed)
        # several products may read the same tensor, each with a factor of its own
        scaled = f"{node.input[0]}_scaled_for_{node.output[0]}"
        element = self.analysis.shapes.dtype(node.input[0])
        dtype = helper.tensor_dtype_to_np_dtype(element) if element else np.dtype(np.float32)
        factor = add_initializer(model, scaled + "_by", gain[0].astype(dtype))
        multiply = helper.make_node("Mul", [node.input[0], factor], [scaled])
        nodes.insert(nodes.index(node), multiply)
        node.input[0] = scaled

    def _refit_linear(
        self,
        model: EditableModel,
        nodes: list[NodeProto],
        node: NodeProto,
        item: InputMoments,
        removed: np.ndarray,
    ) -> None:
        """Replace the weight of a linear node, and insert the shift of its bias after it."""
        values, shift = refit_without(self.analysis, item, removed, self._get_inverse)
        node.input[1] = add_initializer(model, f"{node.input[1]}_refit_{node.output[0]}", values)
        rank = len(self.analysis.shapes.shape(item.linear.out) or ())
        shape = [-1 if i == item.linear.out_axis else 1 for i in range(rank)]
        unshifted = f"{node.output[0]}_refit"
        bias = add_initializer(
            model, unshifted + "_bias", shift.reshape(shape).astype(values.dtype)
        )
        add = helper.make_node("Add", [unshifted, bias], [node.output[0]])
        nodes.insert(nodes.index(node) + 1, add)
        node.output[0] = unshifted

    def _get_inverse(self, item: InputMoments | ProductMoments, g: int) -> np.ndarray:
        """Return the inverse second moments of one group of an item, kept while it is in use."""
        key = id(item), g
        if key not in self._inverses:
            if len(self._inverses) > MAX_INVERSES:
                self._inverses.clear()
            xx = item.xx[g] if isinstance(item, InputMoments) else item.xx
            self._inverses[key] = inverse(xx)
        return self._inverses[key]


def _take_gate_batches(context: Context, groups: int) -> list[dict[str, np.ndarray]]:
    """Return as many batches of the gate data as the computing budget allows."""
    runs = max(groups * len(LEVELS) / 2, 1)
    macs = max(context.analysis.cost().macs, 1)
    enough = max(int(MAX_MACS / macs / runs), MIN_SAMPLES)
    batches: list[dict[str, np.ndarray]] = []
    for batch in context.gate_data("allocator 'divergence'").batches(context.batch_size):
        batches.append(batch)
        if sum(map(samples_of, batches)) >= enough:
            break
    return batches
