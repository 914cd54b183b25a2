"""Mask gradients of every channel on calibration data: the derivative of a loss by a factor on all coupled copies of a channel, a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.analysis.groups import Analysis
from onnxprune.autodiff import (
    DRAWN,
    VECTOR,
    Blocked,
    Gradient,
    Loss,
    Place,
    feeds_of,
    gradient_model,
)
from onnxprune.autodiff.losses import start_tensor
from onnxprune.data.dataset import Data, samples_of
from onnxprune.errors import DataError, ModelError
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import label
from onnxprune.ir.runtime import Session
from onnxprune.statistics.scale import Spread

# Rows of one sample, alone and in a batch, differ by float noise and by units on a kink; a mixed-up row is another sample's, far beyond this
ROW_TOLERANCE = 0.1
BATCHES = "gradient batches of "  # note in `known`: asked for -> used
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


@dataclass(frozen=True)
class MaskGradients:
    """rows: group -> (samples, channels) float64, the sum over the coupled copies and all positions of A * dL/dA; blocked: nodes that no
    gradient passes; incomplete: groups that have a copy before such a node and are therefore not in rows.
    """

    rows: Mapping[str, np.ndarray]
    blocked: tuple[Blocked, ...]
    incomplete: tuple[str, ...]


def default_losses(model: Model) -> tuple[Loss, ...]:
    """A label-free loss an output head.

    Labels drawn from the model where the head has classes: shape (samples, classes), lengths of 1 behind not counted, or a Softmax makes it
    along axis 1. A vector of signs for any other float output.
    """
    shapes, losses = infer(model), []
    for output in model.proto.graph.output:
        shape = shapes.shape(output.name)
        if shapes.dtype(output.name) not in _FLOATS or shape is None:
            continue
        classes = Loss(DRAWN, output.name)
        plain = len(shape) >= 2 and shape[1] != 1 and all(n == 1 for n in shape[2:])
        losses.append(
            classes
            if plain or start_tensor(model, classes, shapes) != output.name
            else Loss(VECTOR, output.name)
        )
    if not losses:
        raise ModelError("head-unknown", "the model has no float output to differentiate")
    return tuple(losses)


def comparable(
    losses: Sequence[Loss], model: Model, data: Data, *, batch_size: int = 16, threads: int = 1
) -> tuple[Loss, ...]:
    """The losses with heads without classes in units of their spread over a sample, so that a large head does not outweigh the others in their sum.

    One forward pass of `model` over the data; none where there is nothing to compare with.
    """
    heads = [loss.head for loss in losses if loss.kind == VECTOR]
    if not heads or len(losses) == 1:
        return tuple(losses)
    spreads = {head: Spread() for head in heads}
    session = Session(model, heads, threads=threads)
    for feeds in data.batches(batch_size):
        for head, values in session.run(feeds).items():
            spreads[head].add(values)
    return tuple(
        replace(x, scale=spreads[x.head].scale) if x.head in spreads else x for x in losses
    )


def mask_gradients(
    analysis: Analysis,
    data: Data,
    losses: Sequence[Loss] | None = None,
    *,
    labels: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int = 16,
    threads: int = 1,
    known: dict[str, Any] | None = None,
) -> MaskGradients:
    """Run the backward graph over the data.

    Parameters
    ----------
    losses
        Summed in one pass; None = `default_losses`. One call a head gives importance by task.
    labels
        For a loss of kind "labels": an entry a sample, in the order of the data.
    seed
        Of drawn labels and vectors. The same seed, data and batch size give the same rows.
    known
        Where it is noted that rows are a sample's own at this batch size, for later calls on models that differ in widths alone.

    Notes
    -----
    Cost: 2 to 5 forward passes for all channels (see tests/autodiff/test_gradient_graph.py), and one more on the first batch, which checks that rows are
    a sample's own. A model that mixes samples is run one sample at a time.
    """
    if labels is not None and len(labels) != data.samples:
        raise DataError("labels-count", f"{len(labels)} labels for {data.samples} samples")
    run = _Run(
        analysis, tuple(losses) if losses is not None else default_losses(analysis.model), threads
    )
    generator = np.random.Generator(np.random.PCG64(seed))
    start, pieces = 0, []
    name, known = f"{BATCHES}{batch_size}", {} if known is None else known
    known[name] = known.get(name) or run.batch_size(data, batch_size)
    for feeds in data.batches(known[name]):
        count = samples_of(feeds)
        pieces.append(
            run.rows(feeds, generator, None if labels is None else labels[start : start + count])
        )
        start += count
    if not pieces:
        raise DataError("data-empty", "there is no calibration sample")
    return run.result(np.concatenate(pieces))


def copies(analysis: Analysis) -> tuple[dict[Place, np.ndarray], set[int]]:
    """Activations that a node sums over, with the causes of each position (length, width), and causes with a copy that has no such place:
    recurrent, or inside of a nested graph.
    """
    outermost = {label(node) for node in analysis.model.proto.graph.node}
    places: dict[Place, np.ndarray] = {}
    lost: set[int] = set()
    for mask in analysis.record.masks:
        node, table = analysis.record.nodes[mask.node], analysis.axes.table(mask.ids)
        if mask.recurrent or label(node) not in outermost:
            lost.update(table.ravel().tolist())
        elif analysis.axes.live(mask.ids) and node.input[mask.slot] not in analysis.model.weights:
            places[Place(node.input[mask.slot], mask.axis, label(node), mask.slot)] = table
    return places, lost


@dataclass
class _Run:
    """State of one pass. places: with the causes of each position; lost: causes whose copy cannot be reached; built: by input shapes."""

    analysis: Analysis
    losses: tuple[Loss, ...]
    threads: int
    places: dict[Place, np.ndarray] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    blocked: dict[Blocked, None] = field(default_factory=dict)
    built: dict[tuple[tuple[int, ...], ...], tuple[Gradient, Session]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places, self.lost = copies(self.analysis)

    def batch_size(self, data: Data, wanted: int) -> int:
        """The size at which rows are a sample's own: as wanted, or 1."""
        if wanted == 1 or data.inputs.batch is not None:
            return wanted
        first = next(iter(data.batches(wanted)), None)
        if first is None or self.separable(first):
            return wanted
        self.built.clear()
        return 1

    def separable(self, feeds: Mapping[str, np.ndarray]) -> bool:
        """Whether all rows equal the first one when all samples are the first one."""
        count = samples_of(feeds)
        if any(len(a) != count for a in feeds.values() if a.ndim):
            return False
        try:
            gradient, session = self.session(feeds)
        except ModelError:
            return False
        if any(not b.op for b in gradient.blocked):
            return False
        labels = np.zeros(
            max((int(np.prod(f.shape)) for f in gradient.feeds.values()), default=0), np.int64
        )
        extra = {
            name: _first(a)
            for name, a in feeds_of(gradient.feeds, np.random.default_rng(0), labels).items()
        }
        mixed, alike = (
            session.run({**feeds, **extra}),
            session.run({**{n: _first(a) for n, a in feeds.items()}, **extra}),
        )
        error = sum(float(((alike[n] - mixed[n][:1]) ** 2).sum()) for n in alike)
        return error <= ROW_TOLERANCE**2 * sum(float((v**2).sum()) for v in alike.values())

    def session(self, feeds: Mapping[str, np.ndarray]) -> tuple[Gradient, Session]:
        key = tuple(a.shape for a in feeds.values())
        if key not in self.built:
            shapes = {name: a.shape for name, a in feeds.items()}
            gradient = gradient_model(
                self.analysis.model, list(self.places), self.losses, shapes, samples_of(feeds)
            )
            self.blocked.update(dict.fromkeys(gradient.blocked))
            self.built[key] = gradient, Session(gradient.model, threads=self.threads, arena=True)
        return self.built[key]

    def rows(
        self,
        feeds: Mapping[str, np.ndarray],
        generator: np.random.Generator,
        labels: np.ndarray | None,
    ) -> np.ndarray:
        """(samples, causes) mask gradients of a batch."""
        count = samples_of(feeds)
        full = next(
            (
                key
                for key in self.built
                if all(
                    k[1:] == a.shape[1:] and len(k) == a.ndim
                    for k, a in zip(key, feeds.values(), strict=False)
                )
            ),
            None,
        )
        if (
            full is not None and count < full[0][0]
        ):  # the last batch is filled up, so that no other graph is needed
            feeds = {
                name: np.resize(a, shape) if a.ndim else a
                for (name, a), shape in zip(feeds.items(), full, strict=False)
            }
            labels = None if labels is None else np.resize(labels, (full[0][0], *labels.shape[1:]))
        gradient, session = self.session(feeds)
        found = session.run({**feeds, **feeds_of(gradient.feeds, generator, labels)})
        rows = np.zeros((self.analysis.axes.causes + 1, gradient.samples))
        for place, output in gradient.outputs.items():
            table = self.places[place]
            for column in range(table.shape[1]):
                np.add.at(rows, table[:, column], found[output].T.astype(np.float64))
        return rows.T[:count]

    def result(self, rows: np.ndarray) -> MaskGradients:
        lost = {
            c
            for b in self.blocked
            for place in b.places
            for c in self.places[place].ravel().tolist()
        } | self.lost
        reached = {c for table in self.places.values() for c in table.ravel().tolist()} | lost
        groups, incomplete = {}, []
        for name, causes in self.analysis.causes.items():
            if lost.intersection(causes.tolist()):
                incomplete.append(name)
            elif reached.issuperset(causes.tolist()):
                groups[name] = rows[:, causes]
        return MaskGradients(groups, tuple(self.blocked), tuple(incomplete))


def _first(array: np.ndarray) -> np.ndarray:
    """The first sample in place of each."""
    return np.repeat(array[:1], len(array), 0) if array.ndim else array
