"""Where the gradient starts: a scalar a sample, made of one output head. Nothing here needs more than one extra input."""

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

COERCED_BEFORE = 13  # Softmax of older opsets flattens everything from its axis on
LABELS, DRAWN, VECTOR = "labels", "drawn", "vector"
KINDS = (LABELS, DRAWN, VECTOR)


@dataclass(frozen=True)
class Loss:
    """The scalar that is differentiated, a sample.

    kind: "labels" = cross-entropy with given labels (int64, the head's shape without its class axis; negative ones are ignored);
    "drawn" = cross-entropy with labels drawn from the model's own softmax, by the Gumbel noise that is fed (argmax of logits + noise is
    a draw: Gumbel 1954); "vector" = v'f(x) for a vector v of signs times `scale` (Hutchinson 1990). Over several positions (pixels) cross-entropy
    is a mean.
    head: tensor name. A head that a Softmax over the same axis makes is read as probabilities, any other as logits.
    axis: the classes. scale: 1 over the standard deviation that errors of the head are measured in.
    """

    kind: str
    head: str
    axis: int = 1
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError("loss-kind", f"loss {self.kind!r} is not one of {', '.join(KINDS)}")

    @property
    def input(self) -> str:
        """Name of the graph input that the loss reads."""
        return f"{PREFIX}{self.kind}:{self.head}"


@dataclass(frozen=True)
class Feed:
    """A graph input that a loss adds."""

    loss: Loss
    shape: tuple[int, ...]
    dtype: int

    @property
    def name(self) -> str:
        return self.loss.input

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Noise for "drawn", scaled signs for "vector"; UsageError for "labels", which nobody can draw."""
        kind = helper.tensor_dtype_to_np_dtype(self.dtype)
        if self.loss.kind == DRAWN:
            return generator.gumbel(size=self.shape).astype(kind)
        if self.loss.kind == VECTOR:
            scale = min(
                self.loss.scale, float(np.finfo(kind).max) / 4
            )  # an infinite gradient is none
            return ((generator.integers(0, 2, self.shape) * 2 - 1) * scale).astype(kind)
        raise UsageError(
            "labels-missing", f"the loss on {self.loss.head!r} needs labels of shape {self.shape}"
        )


def feeds_of(
    feeds: Mapping[str, Feed], generator: np.random.Generator, labels: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """A value for each input that the losses add; labels: for those of kind "labels", reshaped to what is expected."""
    values = {}
    for name, feed in feeds.items():
        if feed.loss.kind == LABELS and labels is not None:
            if labels.size != math.prod(feed.shape):
                raise UsageError(
                    "labels-shape",
                    f"labels have shape {labels.shape}; the loss on {feed.loss.head!r} needs {feed.shape}",
                )
            values[name] = labels.reshape(feed.shape).astype(np.int64)
        else:
            values[name] = feed.draw(generator)
    return values


def start_tensor(model: ModelView, loss: Loss, shapes: Shapes | None = None) -> str:
    """Where a loss begins: the logits behind the head where a Softmax over the same axis makes it, else the head itself."""
    maker = next((node for node in model.proto.graph.node if loss.head in node.output), None)
    if (
        loss.kind == VECTOR
        or maker is None
        or maker.op_type != "Softmax"
        or maker.domain not in STANDARD_DOMAINS
    ):
        return loss.head
    shape = (shapes or infer(model)).shape(loss.head)
    if shape is None:
        return loss.head
    over = attribute(maker, "axis", -1 if model.opset >= COERCED_BEFORE else 1) % len(shape)
    alone = model.opset >= COERCED_BEFORE or all(n == 1 for n in shape[over + 1 :])
    return maker.input[0] if over == loss.axis % len(shape) and alone else loss.head


def seed(loss: Loss, tape: Tape, logits: Value, probabilities: Value | None) -> tuple[Value, Feed]:
    """Gradient of the loss at its start (the logits, or the head for "vector"), and the input that it reads."""
    if loss.kind == VECTOR:
        return Value(tape, loss.input, logits.shape, logits.dtype), Feed(
            loss, logits.shape, logits.dtype
        )
    axis = loss.axis % len(logits.shape)
    single = tuple(1 if i == axis else n for i, n in enumerate(logits.shape))
    if loss.kind == DRAWN:
        feed = Feed(loss, logits.shape, logits.dtype)
        noisy = logits + Value(tape, loss.input, feed.shape, feed.dtype)
        labels = tape.emit(
            "ArgMax", [noisy], single, TensorProto.INT64, {"axis": axis, "keepdims": 1}
        )
    else:
        feed = Feed(
            loss, tuple(n for i, n in enumerate(logits.shape) if i != axis), TensorProto.INT64
        )
        labels = Value(tape, loss.input, feed.shape, feed.dtype).reshape(single)
    classes = np.arange(logits.shape[axis], dtype=np.int64).reshape(
        [-1 if i == axis else 1 for i in range(len(single))]
    )
    target = labels.equals(tape.constant(classes))
    p = probabilities if probabilities is not None else _softmax(logits, axis)
    # p - 1 of the target as minus the sum of the others: exact to a relative error however sure the model is
    others = p.where(~target)
    if loss.kind == LABELS:
        others = others * target.cast(p.dtype).reduce("ReduceSum", [axis])
    grad = (-others.reduce("ReduceSum", [axis])).where(target, others)
    return grad * (1.0 / math.prod(single[1:])), feed


def _softmax(logits: Value, axis: int) -> Value:
    e = (logits - logits.reduce("ReduceMax", [axis])).call("Exp")
    return e / e.reduce("ReduceSum", [axis])
