"""Losses that start the backward pass: one scalar per sample, computed from one output head.

Each reads one additional graph input: labels, noise or a vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from onnxprune.autodiff.tape import PREFIX, Tape, Value
from onnxprune.errors import UsageError
from onnxprune.ir.inference import infer
from onnxprune.ir.model import ModelView
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute
from onnxprune.ir.shapes import Shapes

COERCED_BEFORE = 13  # Softmax of older opsets flattens all axes from its own on
LABELS, DRAWN, VECTOR, BINARY = "labels", "drawn", "vector", "binary"
KINDS = (LABELS, DRAWN, VECTOR, BINARY)
BACKGROUND = 0.01  # least weight of a position
LEAST_VARIANCE = 1e-6  # of a probability, where the gradient by it is computed


@dataclass(frozen=True)
class Loss:
    """Scalar per sample that is differentiated.

    Cross-entropy over several positions (pixels) is a mean.

    Attributes
    ----------
    kind : str
        "labels": cross-entropy with given labels, int64 in the head's shape without its class
        axis; negative ones are ignored. "drawn": cross-entropy with labels drawn from the model's
        own softmax, as the argmax of logits plus fed Gumbel noise (Gumbel 1954). "vector": v'f(x)
        for a vector v of signs times `scale` (Hutchinson 1990). "binary": cross-entropy of every
        value on its own, summed, with labels drawn from the model's own probabilities.
    head : str
        Tensor name. The output of a Softmax over the class axis is read as probabilities, any
        other tensor as logits.
    axis : int
        Class axis.
    scale : float or None
        1 / the standard deviation in which errors of the head are measured; of cross-entropies a
        factor on the sum over positions, None for the mean.
    probabilities : bool
        Whether the head of kind "binary" holds probabilities, not logits.
    weight : tuple or None
        (tensor, class axis, whether it holds probabilities): positions are weighted by the square
        root of the largest probability along the axis.
    """

    kind: str
    head: str
    axis: int = 1
    scale: float | None = None
    probabilities: bool = False
    weight: tuple[str, int, bool] | None = None

    def __post_init__(self) -> None:
        """Check the kind; raise UsageError for an unknown one."""
        if self.kind not in KINDS:
            raise UsageError("loss-kind", f"loss {self.kind!r} is not one of {', '.join(KINDS)}")

    @property
    def input(self) -> str:
        """Name of the graph input that the loss reads."""
        return f"{PREFIX}{self.kind}:{self.head}"


@dataclass(frozen=True)
class Feed:
    """A graph input that a loss adds.

    Attributes
    ----------
    loss : Loss
        Loss that reads it.
    shape : tuple of int
        Shape, batch included.
    dtype : int
        TensorProto.DataType.
    """

    loss: Loss
    shape: tuple[int, ...]
    dtype: int

    @property
    def name(self) -> str:
        """Name of the input."""
        return self.loss.input

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Draw noise for "drawn" and "binary" or scaled signs for "vector".

        Raises
        ------
        UsageError
            The loss needs labels, which cannot be drawn.
        """
        kind = helper.tensor_dtype_to_np_dtype(self.dtype)
        if self.loss.kind == DRAWN:
            return generator.gumbel(size=self.shape).astype(kind)
        if self.loss.kind == BINARY and not self.loss.probabilities:
            return generator.logistic(size=self.shape).astype(kind)
        if self.loss.kind == BINARY:
            return generator.random(self.shape).astype(kind)
        if self.loss.kind == VECTOR:
            # an infinite gradient would be useless
            scale = min(self.loss.scale or 1.0, float(np.finfo(kind).max) / 4)
            signs = generator.integers(0, 2, self.shape) * 2 - 1
            # arithmetic on arrays of rank 0 gives scalars, which onnxruntime refuses
            return np.asarray((signs * scale).astype(kind))
        raise UsageError(
            "labels-missing", f"the loss on {self.loss.head!r} needs labels of shape {self.shape}"
        )


def feeds_of(
    feeds: Mapping[str, Feed], generator: np.random.Generator, labels: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return a value for each input that the losses add.

    Parameters
    ----------
    feeds
        As `gradient_model` returns them.
    generator
        Draws noise and vectors.
    labels
        For losses of kind "labels"; reshaped to the expected shape.

    Raises
    ------
    UsageError
        Labels are missing or of the wrong size.
    """
    values = {}
    for name, feed in feeds.items():
        if feed.loss.kind == LABELS and labels is not None:
            if labels.size != math.prod(feed.shape):
                raise UsageError(
                    "labels-shape",
                    f"labels have shape {labels.shape}; "
                    f"the loss on {feed.loss.head!r} needs {feed.shape}",
                )
            values[name] = labels.reshape(feed.shape).astype(np.int64)
        else:
            values[name] = feed.draw(generator)
    return values


def start_tensor(model: ModelView, loss: Loss, shapes: Shapes | None = None) -> str:
    """Return the tensor at which a loss starts.

    The logits if a Softmax over the class axis computes the head, else the head itself.
    """
    producer = next((node for node in model.proto.graph.node if loss.head in node.output), None)
    if loss.kind in (VECTOR, BINARY) or producer is None:
        return loss.head
    if producer.op_type != "Softmax" or producer.domain not in STANDARD_DOMAINS:
        return loss.head
    shape = (shapes or infer(model)).shape(loss.head)
    if shape is None:
        return loss.head
    over = attribute(producer, "axis", -1 if model.opset >= COERCED_BEFORE else 1) % len(shape)
    # an old Softmax over several axes is no softmax over the classes
    one_axis = model.opset >= COERCED_BEFORE or all(n == 1 for n in shape[over + 1 :])
    return producer.input[0] if one_axis and over == loss.axis % len(shape) else loss.head


def seed(loss: Loss, tape: Tape, logits: Value, probabilities: Value | None) -> tuple[Value, Feed]:
    """Return the gradient of the loss at its start, and the graph input that it reads.

    Parameters
    ----------
    logits
        Tensor at which the loss starts: logits, or the head for "vector".
    probabilities
        Softmax of the logits if the model computes it.
    """
    if loss.kind == VECTOR:
        feed = Feed(loss, logits.shape, logits.dtype)
        # the gradient of v'f(x) by f(x) is v
        return Value(tape, loss.input, feed.shape, feed.dtype), feed
    if loss.kind == BINARY:
        return _seed_binary(loss, tape, logits)
    axis, rank = loss.axis % len(logits.shape), len(logits.shape)
    single = tuple(1 if i == axis else n for i, n in enumerate(logits.shape))
    if loss.kind == DRAWN:
        feed = Feed(loss, logits.shape, logits.dtype)
        noisy = logits + Value(tape, loss.input, feed.shape, feed.dtype)
        attributes = {"axis": axis, "keepdims": 1}
        labels = tape.emit("ArgMax", [noisy], single, TensorProto.INT64, attributes)
    else:
        shape = tuple(n for i, n in enumerate(logits.shape) if i != axis)
        feed = Feed(loss, shape, TensorProto.INT64)
        labels = Value(tape, loss.input, feed.shape, feed.dtype).reshape(single)
    along_axis = [-1 if i == axis else 1 for i in range(rank)]
    classes = np.arange(logits.shape[axis], dtype=np.int64).reshape(along_axis)
    target = labels.equals(tape.constant(classes))
    p = probabilities if probabilities is not None else _compute_softmax(logits, axis)
    # p - 1 of the target as minus the sum of the others keeps its relative precision for p near 1
    others = p.where(~target)
    if loss.kind == LABELS:
        # a label of no class has no gradient
        others = others * target.cast(p.dtype).reduce("ReduceSum", [axis])
    grad = (-others.reduce("ReduceSum", [axis])).where(target, others)
    factor = 1.0 / math.prod(single[1:]) if loss.scale is None else loss.scale
    return grad * factor, feed


def _seed_binary(loss: Loss, tape: Tape, head: Value) -> tuple[Value, Feed]:
    """Return the gradient of binary cross-entropies, and the noise by which labels are drawn."""
    feed = Feed(loss, head.shape, head.dtype)
    noise = Value(tape, loss.input, feed.shape, feed.dtype)
    if loss.probabilities:
        label = (noise < head).cast(head.dtype)
        variance = head * (1.0 - head)
        # a product with the gradient of the sigmoid follows, which is the variance
        limited = variance.where(variance > LEAST_VARIANCE, LEAST_VARIANCE)
        return (head - label) / limited * (loss.scale or 1.0), feed
    label = (head + noise > 0).cast(head.dtype)
    return (head.call("Sigmoid") - label) * (loss.scale or 1.0), feed


def weigh(loss: Loss, gradient: Value, score: Value) -> Value:
    """Return a gradient with its positions weighted by what is detected there.

    The Fisher information of a weighted loss is that of the square root of the weight times the
    gradient. Without the same positions nothing is weighted.

    Parameters
    ----------
    score
        Value of `loss.weight`'s tensor.
    """
    if loss.weight is None or len(score.shape) != len(gradient.shape):
        return gradient
    _, axis, probabilities = loss.weight
    p = score if probabilities else score.call("Sigmoid")
    most = p.reduce("ReduceMax", [axis % len(score.shape)])
    pairs = zip(most.shape, gradient.shape, strict=True)
    if any(m not in (1, n) for m, n in pairs):
        return gradient
    return gradient * (most + BACKGROUND).call("Sqrt")


def _compute_softmax(logits: Value, axis: int) -> Value:
    """Return the softmax over one axis, for any opset."""
    # exponentials must not overflow
    e = (logits - logits.reduce("ReduceMax", [axis])).call("Exp")
    return e / e.reduce("ReduceSum", [axis])
