"""Mask gradients of every channel on calibration data, per sample.

The mask gradient of a channel is the derivative of a loss by a factor on all coupled copies of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import TensorProto

from onnxprune.analysis.groups import Analysis
from onnxprune.autodiff import (
    BINARY,
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
from onnxprune.ir.heads import BINARY as BINARY_HEAD
from onnxprune.ir.heads import CLASSES, Head, find_heads, tensors_of
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import label
from onnxprune.ir.runtime import Session
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import Dim
from onnxprune.metrics.head_divergence import HeadDivergence

# Relative L2 error below which the gradients of one sample, alone and in a batch, are equal. Float
# noise and inputs on a kink of a Relu stay far below; rows of a different sample are far above.
ROW_TOLERANCE = 0.1
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


@dataclass(frozen=True)
class MaskGradients:
    """Mask gradients per sample.

    Attributes
    ----------
    rows
        Group name -> (samples, channels) float64: A * dL/dA summed over the coupled copies A of a
        channel and all their positions.
    blocked
        Nodes that no gradient can pass.
    incomplete
        Groups with a copy upstream of such a node; they are not in `rows`.
    """

    rows: Mapping[str, np.ndarray]
    blocked: tuple[Blocked, ...]
    incomplete: tuple[str, ...]


def default_losses(model: Model) -> tuple[Loss, ...]:
    """Return one label-free loss per head.

    Labels are drawn from the model if the head has classes: it is the logits of a Softmax, or its
    shape is (samples, classes) up to trailing axes of length 1. Of a Sigmoid they are drawn value
    by value. Any other head is multiplied by a vector of random signs.

    Raises
    ------
    ModelError
        The model has no float output.
    """
    shapes, losses = infer(model), []
    for head in find_heads(model, shapes=shapes):
        shape = shapes.shape(head.tensor)
        if shapes.dtype(head.tensor) not in _FLOATS or shape is None:
            continue
        losses.append(_choose_loss(model, head, shape, shapes))
    if not losses:
        raise ModelError("head-unknown", "the model has no float output to differentiate")
    return tuple(losses)


def _choose_loss(model: Model, head: Head, shape: Sequence[Dim], shapes: Shapes) -> Loss:
    """Return the loss of one head."""
    score = head.score
    weight = (score.tensor, score.axis, score.probabilities) if score else None
    if head.kind == BINARY_HEAD:
        return Loss(BINARY, head.tensor, probabilities=head.probabilities, weight=weight)
    if head.kind == CLASSES:
        return Loss(DRAWN, head.tensor, head.axis, weight=weight)
    drawn = Loss(DRAWN, head.tensor)
    # a single class leaves nothing to draw
    flat = len(shape) >= 2 and shape[1] != 1 and all(n == 1 for n in shape[2:])
    # a softmax in front of what is no head of several
    if flat or start_tensor(model, drawn, shapes) != head.tensor:
        return drawn
    return Loss(VECTOR, head.tensor, weight=weight)


def comparable(
    losses: Sequence[Loss], model: Model, data: Data, *, batch_size: int = 16, threads: int = 1
) -> tuple[Loss, ...]:
    """Scale the losses so that each head counts as its divergence does.

    A head with large values or many positions would otherwise dominate the sum of the losses.

    Notes
    -----
    Cost: one forward pass over the data; none if there is only one loss, or all are of one row of
    classes per sample.
    """
    heads = {head.tensor: head for head in find_heads(model)}
    parts = {
        loss: heads.get(loss.head, Head(loss.head, output=loss.head))
        for loss in losses
        if loss.kind != DRAWN or loss.weight is not None or _is_map(heads.get(loss.head))
    }
    if not parts or (len(losses) == 1 and losses[0].weight is None):
        return tuple(losses)
    measured = {loss: HeadDivergence(head) for loss, head in parts.items()}
    session = Session(model, tensors_of(parts.values()), threads=threads)
    samples = 0
    for feeds, values in session.run_each(data.batches(batch_size)):
        samples += samples_of(feeds)
        # streamed, since outputs of all batches may not fit into memory
        for divergence in measured.values():
            divergence.describe(values)
    scales = {loss: _to_scale(loss, d.variation / max(samples, 1)) for loss, d in measured.items()}
    return tuple(replace(loss, scale=scales.get(loss, loss.scale)) for loss in losses)


def _is_map(head: Head | None) -> bool:
    """Return True for a head with a distribution per position."""
    return head is not None and head.kind == CLASSES


def _to_scale(loss: Loss, variation: float) -> float:
    """Return the factor at which losses count as divergences do.

    Half of the squared change of a loss with drawn labels is its divergence; the error of other
    values is not halved.
    """
    return math.sqrt((1.0 if loss.kind == VECTOR else 0.5) / variation)


def mask_gradients(
    analysis: Analysis,
    data: Data,
    losses: Sequence[Loss] | None = None,
    *,
    labels: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int = 16,
    threads: int = 1,
    batch_sizes: dict[int, int] | None = None,
) -> MaskGradients:
    """Run the backward graph over the data.

    Parameters
    ----------
    losses
        Summed in one pass; None = `default_losses`. Call once per head for importance per task.
    labels
        For losses of kind "labels": one entry per sample, in the order of the data.
    seed
        Seed of drawn labels and sign vectors. The same seed, data and batch size give the same
        rows.
    batch_sizes
        Requested batch size -> largest one at which samples do not mix. Read and updated, so that
        later calls on models that differ in widths alone skip the check.

    Raises
    ------
    DataError
        The number of labels is not the number of samples, or there are no samples.

    Notes
    -----
    Cost: 2 to 5 forward passes for all channels (see tests/autodiff/test_gradient_graph.py), and
    one more on the first batch, which checks that the gradients of a sample do not depend on the
    others. A model that mixes samples is run one sample at a time.
    """
    if labels is not None and len(labels) != data.samples:
        raise DataError("labels-count", f"{len(labels)} labels for {data.samples} samples")
    backward = _BackwardPass(
        analysis, tuple(losses) if losses is not None else default_losses(analysis.model), threads
    )
    # a named bit generator: the default of numpy may change
    generator = np.random.Generator(np.random.PCG64(seed))
    batch_sizes = {} if batch_sizes is None else batch_sizes
    if batch_size not in batch_sizes:
        batch_sizes[batch_size] = backward.choose_batch_size(data, batch_size)
    start, rows = 0, []
    for feeds in data.batches(batch_sizes[batch_size]):
        count = samples_of(feeds)
        batch_labels = None if labels is None else labels[start : start + count]
        rows.append(backward.compute_rows(feeds, generator, batch_labels))
        start += count
    if not rows:
        raise DataError("data-empty", "there is no calibration sample")
    return backward.result(np.concatenate(rows))


def copies(analysis: Analysis) -> tuple[dict[Place, np.ndarray], set[int]]:
    """Return the activations that carry a copy of a channel into a node that sums over it.

    Returns
    -------
    places
        Activation -> causes of each position, (length, width) int.
    lost
        Causes with a copy that has no such place: recurrent, or inside a nested graph.
    """
    places: dict[Place, np.ndarray] = {}
    lost: set[int] = set()
    for mask in analysis.masks:
        table = analysis.axes.table(mask.ids)
        if not analysis.measurable(mask):
            lost.update(table.ravel().tolist())
        elif analysis.axes.live(mask.ids) and mask.tensor not in analysis.model.weights:
            node = label(analysis.nodes[mask.node])
            places[Place(mask.tensor, mask.axis, node, mask.slot)] = table
    return places, lost


@dataclass
class _BackwardPass:
    """State of one pass over the data.

    Attributes
    ----------
    places
        Differentiated activations -> causes of each position.
    lost
        Causes with a copy that cannot be differentiated.
    blocked
        Nodes that no gradient can pass, in the order met (a dict serves as an ordered set).
    built
        Backward graphs by input shapes.
    """

    analysis: Analysis
    losses: tuple[Loss, ...]
    threads: int
    places: dict[Place, np.ndarray] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    blocked: dict[Blocked, None] = field(default_factory=dict)
    built: dict[tuple[tuple[int, ...], ...], tuple[Gradient, Session]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places, self.lost = copies(self.analysis)

    def choose_batch_size(self, data: Data, requested: int) -> int:
        """Return the requested size if samples do not mix at it, else 1."""
        if requested == 1 or data.inputs.batch is not None:
            return requested
        first = next(iter(data.batches(requested)), None)
        if first is None or self.is_separable(first):
            return requested
        # graphs of the rejected size would be found for smaller batches
        self.built.clear()
        return 1

    def is_separable(self, feeds: Mapping[str, np.ndarray]) -> bool:
        """Return True if the gradients of the first sample do not depend on the other samples.

        Compares its row in this batch with its row in a batch of copies of it.
        """
        count = samples_of(feeds)
        # an array without a row per sample cannot be compared per sample
        if any(len(a) != count for a in feeds.values() if a.ndim):
            return False
        try:
            gradient, session = self.open_session(feeds)
        except ModelError:
            return False
        # a block without an op concerns the axes of a tensor, such as a batch axis that moved
        if any(not b.op for b in gradient.blocked):
            return False
        most_labels = max((int(np.prod(f.shape)) for f in gradient.feeds.values()), default=0)
        # one label and vector for all samples, so that only their inputs differ
        drawn = feeds_of(gradient.feeds, np.random.default_rng(0), np.zeros(most_labels, np.int64))
        extra = {name: _repeat_first(a) for name, a in drawn.items()}
        mixed = session.run({**feeds, **extra})
        copies_of_first = {name: _repeat_first(a) for name, a in feeds.items()}
        alike = session.run({**copies_of_first, **extra})
        error = sum(float(((alike[n] - mixed[n][:1]) ** 2).sum()) for n in alike)
        return error <= ROW_TOLERANCE**2 * sum(float((v**2).sum()) for v in alike.values())

    def open_session(self, feeds: Mapping[str, np.ndarray]) -> tuple[Gradient, Session]:
        """Return the backward graph for feeds of these shapes, built once."""
        key = tuple(a.shape for a in feeds.values())
        if key not in self.built:
            shapes = {name: a.shape for name, a in feeds.items()}
            gradient = gradient_model(
                self.analysis.model, list(self.places), self.losses, shapes, samples_of(feeds)
            )
            self.blocked.update(dict.fromkeys(gradient.blocked))
            self.built[key] = gradient, Session(gradient.model, threads=self.threads, arena=True)
        return self.built[key]

    def compute_rows(
        self,
        feeds: Mapping[str, np.ndarray],
        generator: np.random.Generator,
        labels: np.ndarray | None,
    ) -> np.ndarray:
        """Return the (samples, causes + 1) mask gradients of a batch."""
        count = samples_of(feeds)
        full = self._find_full_shapes(feeds)
        if full is not None and count < full[0][0]:
            # pad the last batch by repeating samples, which saves building another graph
            feeds = {
                name: np.resize(a, shape) if a.ndim else a
                for (name, a), shape in zip(feeds.items(), full, strict=True)
            }
            labels = None if labels is None else np.resize(labels, (full[0][0], *labels.shape[1:]))
        gradient, session = self.open_session(feeds)
        values = session.run({**feeds, **feeds_of(gradient.feeds, generator, labels)})
        rows = np.zeros((self.analysis.axes.causes + 1, gradient.samples))
        for place, output in gradient.outputs.items():
            table = self.places[place]
            for column in range(table.shape[1]):
                # a cause may occur several times in a column
                np.add.at(rows, table[:, column], values[output].T.astype(np.float64))
        return rows.T[:count]

    def _find_full_shapes(
        self, feeds: Mapping[str, np.ndarray]
    ) -> tuple[tuple[int, ...], ...] | None:
        """Return the shapes of a built graph that differ from the feeds in batch size at most."""
        for shapes in self.built:
            pairs = zip(shapes, feeds.values(), strict=True)
            if all(s[1:] == a.shape[1:] and len(s) == a.ndim for s, a in pairs):
                return shapes
        return None

    def result(self, rows: np.ndarray) -> MaskGradients:
        """Return the gradients by group; rows: (samples, causes + 1)."""
        lost = set(self.lost)
        for blocked in self.blocked:
            for place in blocked.places:
                lost.update(self.places[place].ravel().tolist())
        # causes that no node sums over have no gradient, and their groups are left out
        reached = set(lost)
        for table in self.places.values():
            reached.update(table.ravel().tolist())
        groups, incomplete = {}, []
        for name, causes in self.analysis.causes.items():
            if lost.intersection(causes.tolist()):
                incomplete.append(name)
            elif reached.issuperset(causes.tolist()):
                groups[name] = rows[:, causes]
        return MaskGradients(groups, tuple(self.blocked), tuple(incomplete))


def _repeat_first(array: np.ndarray) -> np.ndarray:
    """Return an array of the same shape in which every sample is the first."""
    return np.repeat(array[:1], len(array), 0) if array.ndim else array
