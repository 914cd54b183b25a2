"""What cutting each group alone does to the model's outputs, measured on inputs that no statistic was taken from.

A few widths a group, the readers refitted in closed form; the criterion's error curve carries the measured points to all other
widths. Each width costs a run of the part of the network behind the group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import NodeProto, helper

from onnxprune.allocators.base import Ranking, Step, ordered
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import from_matrix
from onnxprune.criteria.base import Context
from onnxprune.criteria.elimination import inverse, refit_weight
from onnxprune.criteria.reconstruction import channel_columns, moments
from onnxprune.data.dataset import samples_of
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.extract import extract
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel
from onnxprune.ir.runtime import Session
from onnxprune.metrics.tempered import Tempered
from onnxprune.statistics.im2col import geometry, tap_order
from onnxprune.statistics.moments import InputMoments, ProductMoments
from onnxprune.statistics.segmented_run import SegmentedRun
from onnxprune.types import Scores

LEVELS = (
    0.5,
    1.0,
)  # of the channels that may go; twice as many leave 3 to 7 % less divergence on held-out images and take twice the time
WHOLE_EVERY = 4  # of how many batches of the gate one measures a branch that goes whole: a third point of these groups takes an eighth more time, not a half
MACS, LEAST_SAMPLES = (
    4e12,
    32,
)  # of all runs, half of the network each: as many samples of the gate as these MACs allow, and at least so many
# Damage of a group that several nodes make (a residual stream) counts double: refitting the nodes between the cut and the output
# makes up for less of it than for a branch's. Chosen by KL on calibration images of a CIFAR ResNet-20 that nothing else saw.
STREAM = 2.0
_TINY = 1e-12


def divergence(context: Context, scores: Scores, steps: Sequence[Step]) -> Ranking:
    """Damage of a step: increase of the divergence between the whole model's outputs and those with this group alone cut and repaired.

    Class scores (two axes) diverge by Kullback-Leibler at a temperature where the model is not sure; other outputs by relative
    squared error. Outputs are summed.
    """
    analysis = context.analysis
    statistics, pairs, _ = moments(context)
    probe = _Probe(context, statistics, pairs, len({step.group for step in steps}))
    damage = np.zeros(len(steps))
    of_group: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        of_group.setdefault(step.group, []).append(i)
    for name in sorted(of_group, key=probe.place):
        members = of_group[name]
        order = ordered(np.asarray(scores[name]))
        error = np.cumsum(np.maximum(np.asarray(scores[name])[order], 0.0))
        gone = np.array([analysis.group(name).size - steps[i].target for i in members])
        part = gone[gone < len(order)]
        wanted = np.unique(
            [part[max(round(level * len(part)) - 1, 0)] for level in LEVELS if len(part)]
        ).astype(np.int64)
        measured = np.array([probe(name, order[:count]) for count in wanted])
        if len(part) < len(gone):
            wanted, measured = (
                np.append(wanted, len(order)),
                np.append(measured, probe(name, order, WHOLE_EVERY)),
            )
        curve = _carry(
            error[wanted - 1], np.maximum.accumulate(np.maximum(measured, 0.0)), error[gone - 1]
        )
        makers = {m.site.node for m in analysis.members(name) if m.site.role == "produces"}
        damage[members] = np.diff(curve, prepend=0.0) * (STREAM if len(makers) > 1 else 1.0)
        context.progress(
            len(probe.done) / len(of_group),
            f"{len(probe.done)} of {len(of_group)} groups; --fast does without",
        )
    return Ranking(damage, True)


def _carry(error: np.ndarray, measured: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Divergence at other errors: linear between logarithms, proportional below the first point."""
    x, y, w = (np.log(np.maximum(v, _TINY)) for v in (error, measured, wanted))
    out = np.interp(w, x, y)
    below = w < x[0]
    out[below] = y[0] + (w[below] - x[0])
    return np.maximum.accumulate(np.exp(out))


def divergence_behind(
    run: SegmentedRun,
    model: Model,
    nodes: Sequence[NodeProto],
    expected: Sequence[Mapping[str, np.ndarray]],
    every: int = 1,
) -> float:
    """Divergence of the outputs from the expected ones, a batch each, where `nodes` of `model` stand for the rest of the network behind the run's place;
    of one of so many batches.
    """
    outputs = [o.name for o in model.proto.graph.output]
    session = Session(
        extract(model, run.shapes, nodes, set(run.state[0]), outputs), threads=run.threads
    )
    meters = {o: Meter() for o in outputs}
    for state, wanted in zip(run.state[::every], expected[::every], strict=False):
        found = session.run({n: state[n] for n in session.inputs})
        for output, meter in meters.items():
            meter.update(wanted[output], found[output])
    return sum(m.result() for m in meters.values())


class _Probe:
    """Runs of the whole network from where a group is read. Groups must come in graph order."""

    def __init__(
        self,
        context: Context,
        statistics: Mapping[int, InputMoments],
        pairs: list[ProductMoments],
        groups: int,
    ) -> None:
        self.context, self.analysis = context, context.analysis
        self.statistics, self.pairs = statistics, pairs
        runs = max(groups * len(LEVELS) / 2, 1)
        most = max(int(MACS / max(self.analysis.cost().macs, 1) / runs), LEAST_SAMPLES)
        self.batches: list[dict[str, np.ndarray]] = []
        for batch in context.gate_data("allocator 'divergence'").batches(context.batch_size):
            self.batches.append(batch)
            if sum(map(samples_of, self.batches)) >= most:
                break
        session = Session(self.analysis.model, threads=context.threads)
        self.expected = [session.run(b) for b in self.batches]
        self.run = SegmentedRun(
            self.analysis.model, self.batches, threads=context.threads, shapes=self.analysis.shapes
        )
        self.inverses: dict[int, np.ndarray] = {}
        self.done: set[str] = set()
        self.group = ""
        self.parts: list[tuple[int, InputMoments | ProductMoments, np.ndarray]] = []

    def readers(self, name: str) -> list[tuple[int, InputMoments | ProductMoments, np.ndarray]]:
        """(position in the node list, statistic, columns a channel) of what reads a group."""
        causes = self.analysis.causes[name]
        found: list[tuple[int, InputMoments | ProductMoments, np.ndarray]] = []
        items: list[InputMoments | ProductMoments] = [*self.statistics.values(), *self.pairs]
        for item in items:
            ids = item.linear.ids if isinstance(item, InputMoments) else item.ids
            node = item.linear.node if isinstance(item, InputMoments) else item.node
            index = channel_columns(self.analysis, ids, causes)
            place = self.run.place(self.analysis.record.nodes[node].output[0])
            if index is not None and place >= 0:
                found.append((place, item, index))
        return found

    def place(self, name: str) -> int:
        """Where a group is first read."""
        return min((p for p, _, _ in self.readers(name)), default=0)

    def __call__(self, name: str, gone: np.ndarray, every: int = 1) -> float:
        """Divergence with these channels of the group gone and its readers refitted, on one of so many batches."""
        if name != self.group:
            self.group, self.parts = name, self.readers(name)
            self.run.advance(self.place(name))
            self.done.add(name)
        model, nodes = self.changed(gone)
        return divergence_behind(self.run, model, nodes, self.expected, every)

    def changed(self, gone: np.ndarray) -> tuple[Model, list[NodeProto]]:
        """The network from here on with refitted readers."""
        model = self.analysis.model.edit()
        start = self.run.at
        nodes = list(model.proto.graph.node)[start:]
        for node, item, index in [
            (nodes[place - start], item, index) for place, item, index in self.parts
        ]:
            if isinstance(item, ProductMoments):
                gain = refit_weight(
                    np.ones((1, len(item.xx))), self.inverse_of(item, 0), index[gone].ravel()
                )
                scaled = f"{node.input[0]}_scaled"
                factor = add_initializer(model, scaled + "_by", gain[0].astype(np.float32))
                nodes.insert(
                    nodes.index(node), helper.make_node("Mul", [node.input[0], factor], [scaled])
                )
                node.input[0] = scaled
            else:
                self.refit(model, nodes, node, item, index[gone].ravel())
        return model.freeze(), nodes

    def refit(
        self,
        model: EditableModel,
        nodes: list[NodeProto],
        node: NodeProto,
        item: InputMoments,
        gone: np.ndarray,
    ) -> None:
        """New weight of one linear node, and the mean that it loses behind it."""
        values, shift = refitted_without(self.analysis, item, gone, self.inverse_of)
        node.input[1] = add_initializer(model, f"{node.input[1]}_refit_{node.output[0]}", values)
        rank = len(self.analysis.shapes.shape(item.linear.out) or ())
        shape = [-1 if i == item.linear.out_axis else 1 for i in range(rank)]
        inner = f"{node.output[0]}_refit"
        bias = add_initializer(model, inner + "_bias", shift.reshape(shape).astype(values.dtype))
        nodes.insert(
            nodes.index(node) + 1, helper.make_node("Add", [inner, bias], [node.output[0]])
        )
        node.output[0] = inner

    def inverse_of(self, item: InputMoments | ProductMoments, g: int) -> np.ndarray:
        """Inverse second moments, kept while the group lasts."""
        key = hash((id(item), g))
        if key not in self.inverses:
            if len(self.inverses) > 64:
                self.inverses.clear()
            self.inverses[key] = inverse(item.xx[g] if isinstance(item, InputMoments) else item.xx)
        return self.inverses[key]


def refitted_without(
    analysis: Analysis,
    item: InputMoments,
    gone: np.ndarray,
    inverse_of: Callable[[InputMoments, int], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """A node's weight, as it is stored, refitted once these inputs are gone; and the mean that its outputs lose by it, (outputs,).

    gone: positions on the node's input axis; inverse_of: inverse second moments of one of its groups.
    """
    weight, inputs = item.weight(analysis), item.xx.shape[1] // item.taps
    new = np.empty_like(weight)
    for g in range(len(weight)):
        here = gone[(gone >= g * inputs) & (gone < (g + 1) * inputs)] - g * inputs
        new[g] = refit_weight(
            weight[g],
            inverse_of(item, g),
            (here[:, None] * item.taps + np.arange(item.taps)).ravel(),
        )
    lost = np.einsum("gok,gk->go", weight - new, item.mean)
    node, old = (
        analysis.record.nodes[item.linear.node],
        analysis.model.weights[item.linear.weight.tensor].array(),
    )
    how = geometry(node, old.shape, (0,) * old.ndim)
    taps = max(how.taps, 1)
    if item.taps == taps:
        matrix = new.reshape(len(new), -1, inputs, taps)
    else:
        matrix, lost = (
            new.reshape(len(new), -1, taps, inputs).transpose(0, 1, 3, 2),
            lost.reshape(len(new), -1, taps).sum(2),
        )
    back = np.empty_like(matrix)
    back[..., tap_order(how)] = matrix
    return from_matrix(item.linear, node, back, old.shape).astype(old.dtype), lost.ravel()


class Meter:
    """Divergence of one output, streamed."""

    def __init__(self) -> None:
        self._tempered: Tempered | None = None
        self._error = self._energy = 0.0

    def update(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Add a batch."""
        if expected.dtype.kind != "f":
            return
        if expected.ndim == 2 and expected.shape[1] > 1:
            self._tempered = self._tempered or Tempered()
            self._tempered.update(expected, found)
            return
        difference = found.astype(np.float64) - expected
        self._error += float(np.square(difference).sum())
        self._energy += float(np.square(expected, dtype=np.float64).sum())

    def result(self) -> float:
        """Nats, or relative squared error."""
        return (
            self._tempered.result().kl if self._tempered else self._error / max(self._energy, _TINY)
        )
