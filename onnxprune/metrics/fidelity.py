"""How far a pruned model is from the original on the same inputs, without labels.

Everything is summed batch by batch: memory is one batch of both models' outputs. What cannot be said of an output is None, never a guess:

- relative error, normalized squared error, largest difference: every float output;
- top-1 agreement and tempered divergence: outputs with one row of class scores a sample, (n, classes) with trailing axes of length 1, and outputs whose class
  axis the caller names (`class_axes`, such as -1 for the logits of a language model or 1 for segmentation): a row is then one position;
- location agreement: 4-D outputs with other than 1 or 3 channels (score maps, not images): share of positions with the same largest channel;
- box agreement: with a decoder, or where the model ends in its own boxes, scores and classes (then nothing else is compared: rows are sorted by score).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.metrics.base import Decoder, MetricOptions, Outputs, plain
from onnxprune.metrics.boxes import detections_of, overlap
from onnxprune.metrics.tempered import Tempered

CONFIDENT = 0.99  # mean maximum probability above which plain divergence says next to nothing
BOX_OVERLAP = 0.5
IMAGE_CHANNELS = (1, 3)
PIECE_VALUES = (
    1 << 20
)  # of an output in float64 at a time: 8 MB, of which a handful of temporaries exist


class Feeds(Protocol):
    """What calibration and labeled data have in common."""

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Feeds by input name."""


@dataclass(frozen=True)
class OutputFidelity:
    """One output, original a against pruned b. Sums are over all values of all samples.

    relative_error: ||a - b|| / ||a||; nmse: ||a - b||^2 / ||a - mean of its channel||^2, 1 where b is no better than a constant a channel;
    max_abs: largest |a - b|; top1_agreement: share of rows with the same largest value; kl: mean over rows of KL(softmax(a/T) || softmax(b/T)) in nats at
    `temperature` T; max_probability: mean over rows of the original's largest probability, untempered; location_agreement: see the module.
    """

    relative_error: float
    nmse: float | None
    max_abs: float
    top1_agreement: float | None = None
    kl: float | None = None
    temperature: float | None = None
    max_probability: float | None = None
    location_agreement: float | None = None


@dataclass(frozen=True)
class Fidelity:
    """All outputs by name, samples seen, box agreement, and what the reader must know.

    box_agreement: 2 m / (boxes of a + boxes of b) where m boxes are found by both (same class, IoU at
    least 0.5), of boxes with at least `box_score`; 1 where neither finds any; None without boxes.
    """

    outputs: Mapping[str, OutputFidelity]
    samples: int
    box_agreement: float | None = None
    box_score: float | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def relative_error(self) -> float | None:
        """Of the worst output; NaN where a value is; None where only boxes are compared."""
        return (
            float(np.max([o.relative_error for o in self.outputs.values()]))
            if self.outputs
            else None
        )

    @property
    def agreement(self) -> float | None:
        """The agreement that fits the model: boxes, else the least top-1, else the least location agreement; None where there is none."""
        top1 = [o.top1_agreement for o in self.outputs.values() if o.top1_agreement is not None]
        places = [
            o.location_agreement for o in self.outputs.values() if o.location_agreement is not None
        ]
        return (
            self.box_agreement
            if self.box_agreement is not None
            else min(top1 or places, default=None)
        )

    @property
    def divergence(self) -> float:
        """One number, 0 for no change: the relative error, or where only boxes are compared the share of boxes that one model alone finds; infinite for NaN."""
        found = self.relative_error if self.outputs else 1.0 - (self.box_agreement or 0.0)
        return float(found) if found is not None and math.isfinite(found) else math.inf

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, None for what is not finite."""
        head = {
            "samples": self.samples,
            "relative_error": self.relative_error,
            "agreement": self.agreement,
            "box_agreement": self.box_agreement,
        }
        found = {
            **head,
            "outputs": {n: asdict(o) for n, o in self.outputs.items()},
            "warnings": self.warnings,
        }
        return {key: plain(value) for key, value in found.items()}


class Accumulator:
    """Sums over batches; `update` with the outputs of both models, then `result`."""

    def __init__(
        self,
        *,
        decoder: str | Decoder | None = None,
        class_axes: Mapping[str, int] | None = None,
        box_score: float = 0.25,
    ) -> None:
        self._options = MetricOptions(decoder=decoder)
        self._axes = dict(class_axes or {})
        self._box_score = box_score
        self._sums: dict[str, _OutputSums] = {}
        self._boxes: list[int] | None = [0, 0]
        self._samples = 0

    def update(
        self, original: Outputs, pruned: Outputs, feeds: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """One batch; `feeds` gives the input's size to models whose boxes are in pixels.

        Raises
        ------
        DataError
            The two models' outputs differ in shape.
        UsageError
            `class_axes` names an output or axis that is not there.
        """
        if unknown := sorted(set(self._axes) - set(original)):
            raise UsageError(
                "fidelity-output",
                f"class_axes: no output {unknown[0]!r}; there are {', '.join(original)}",
            )
        self._samples += next((len(v) for v in original.values() if np.ndim(v)), 1)
        if self._update_boxes(original, pruned, feeds or {}):
            return
        for name, value in original.items():
            a, b = np.asarray(value), np.asarray(pruned[name])
            if a.dtype.kind != "f":
                continue
            if a.shape != b.shape:
                raise DataError(
                    "fidelity-shape",
                    f"output {name!r}: {a.shape} in the original, {b.shape} in the pruned model",
                )
            if name not in self._sums:
                self._sums[name] = _OutputSums(name, a, self._axes.get(name))
            self._sums[name].update(np.atleast_1d(a), np.atleast_1d(b))

    def result(self) -> Fidelity:
        """The figures so far; DataError where no batch was seen."""
        if not self._samples:
            raise DataError("data-empty", "fidelity: no sample was seen")
        outputs = {n: s.result() for n, s in self._sums.items()}
        sure = [
            n
            for n, o in outputs.items()
            if o.max_probability is not None and o.max_probability > CONFIDENT
        ]
        warnings = tuple(
            f"output {n!r}: mean maximum probability {outputs[n].max_probability:.4f} > {CONFIDENT}: the inputs look memorized; "
            f"divergence is given at temperature {outputs[n].temperature:.3g}; use inputs that the model was not trained on"
            for n in sure
        )
        if self._boxes is None:
            return Fidelity(outputs, self._samples, warnings=warnings)
        common, total = self._boxes
        return Fidelity(
            outputs, self._samples, 2 * common / total if total else 1.0, self._box_score, warnings
        )

    def _update_boxes(
        self, original: Outputs, pruned: Outputs, feeds: Mapping[str, np.ndarray]
    ) -> bool:
        """Count common boxes; whether the outputs are boxes of the model's own, whose rows are in no common order."""
        if self._boxes is None:
            return False
        try:
            found = [detections_of(o, _sizes(feeds), self._options) for o in (original, pruned)]
        except (UsageError, DataError):
            if self._options.decoder is not None:
                raise
            self._boxes = None
            return False
        for a, b in zip(*found, strict=False):
            a, b = (d[d[:, 4] >= self._box_score] for d in (a, b))
            self._boxes[0] += common_boxes(a, b)
            self._boxes[1] += len(a) + len(b)
        return self._options.decoder is None


class _OutputSums:
    """Running sums of one output."""

    def __init__(self, name: str, first: np.ndarray, axis: int | None) -> None:
        if axis is not None and not -first.ndim <= axis < first.ndim:
            raise UsageError(
                "fidelity-axis",
                f"class_axes: output {name!r} of shape {first.shape} has no axis {axis}",
            )
        flat = first.ndim >= 2 and first.shape[1] > 1 and math.prod(first.shape[2:]) == 1
        self.axis = 1 if axis is None and flat else axis
        self.places = self.axis is None and first.ndim == 4 and first.shape[1] not in IMAGE_CHANNELS
        self.error = self.power = self.largest = 0.0
        self.channel_sums: np.ndarray | None = np.zeros(first.shape[1] if first.ndim > 1 else 1)
        self.channel_count = 0
        self.same = self.rows = 0
        self.tempered = Tempered() if self.axis is not None else None

    def update(self, a: np.ndarray, b: np.ndarray) -> None:
        """Both models' values of one batch; float64 copies are of few samples at a time."""
        step = (
            max(1, PIECE_VALUES // max(1, a[:1].size))
            if self.axis is None or self.axis % a.ndim
            else len(a)
        )
        for start in range(0, len(a), step):
            self._add(
                a[start : start + step].astype(np.float64),
                b[start : start + step].astype(np.float64),
            )

    def _add(self, a: np.ndarray, b: np.ndarray) -> None:
        gap = np.abs(a - b)
        self.error += float(np.sum(gap * gap))
        self.power += float(np.sum(a * a))
        self.largest = (
            max(self.largest, float(gap.max(initial=0.0))) if not np.isnan(gap).any() else math.nan
        )
        self._add_channels(a)
        axis = 1 if self.places else self.axis
        if axis is not None:
            agree = (a.argmax(axis) == b.argmax(axis)) & ~np.isnan(b).any(axis)
            self.same, self.rows = self.same + int(agree.sum()), self.rows + agree.size
        if self.tempered is not None and self.axis is not None:
            self.tempered.update(*(np.moveaxis(v, self.axis, -1) for v in (a, b)))

    def _add_channels(self, a: np.ndarray) -> None:
        """Sums a channel (axis 1), as long as it is one: an axis whose length changes between batches is not."""
        sums = (
            a.sum(tuple(k for k in range(a.ndim) if k != 1))
            if a.ndim > 1
            else a.sum(keepdims=True).reshape(1)
        )
        if self.channel_sums is not None:
            self.channel_sums = (
                self.channel_sums + sums if sums.shape == self.channel_sums.shape else None
            )
            self.channel_count += a.size // max(1, len(sums))

    def result(self) -> OutputFidelity:
        """The output's figures."""
        relative = (
            math.sqrt(self.error / self.power)
            if self.power
            else (0.0 if self.error == 0 else math.inf)
        )
        spread = 0.0
        if self.channel_sums is not None and self.channel_count:
            spread = self.power - float((self.channel_sums**2).sum()) / self.channel_count
        # below that the difference of two nearly equal sums is rounding
        nmse = self.error / spread if spread > 1e-9 * self.power else None
        agreement = self.same / self.rows if self.rows else None
        if self.tempered is None:
            return OutputFidelity(relative, nmse, self.largest, location_agreement=agreement)
        found = self.tempered.result()
        return OutputFidelity(
            relative,
            nmse,
            self.largest,
            agreement,
            found.kl,
            found.temperature,
            found.max_probability,
        )


def fidelity(
    original: Model,
    pruned: Model,
    data: Feeds,
    *,
    decoder: str | Decoder | None = None,
    class_axes: Mapping[str, int] | None = None,
    box_score: float = 0.25,
    threads: int = 1,
    batch_size: int = 32,
) -> Fidelity:
    """Both models on the same inputs.

    Parameters
    ----------
    data
        Calibration data (or labeled data): anything with `batches(batch_size)`. Not what chose the pruned channels.
    decoder
        Boxes from raw outputs, a function or `module:function`; None: where the outputs are boxes, scores and classes.
    class_axes
        output name -> axis of its classes, where it is not one row a sample.
    box_score
        Boxes with a smaller score are not compared.

    Raises
    ------
    DataError
        No data, or outputs of different shapes.
    """
    first, second = Session(original, threads=threads), Session(pruned, threads=threads)
    if missing := [o for o in first.outputs if o not in second.outputs]:
        raise DataError("fidelity-output", f"the pruned model has no output {missing[0]!r}")
    sums = Accumulator(decoder=decoder, class_axes=class_axes, box_score=box_score)
    for feeds in data.batches(batch_size):
        sums.update(first.run(feeds), second.run(feeds), feeds)
    return sums.result()


def common_boxes(a: np.ndarray, b: np.ndarray) -> int:
    """How many detections of `a` (n, 6) have one of their class in `b` at IoU >= 0.5, each used once, best score of `a` first."""
    shares = overlap(a, b)
    shares[a[:, 5][:, None] != b[:, 5][None]] = -1
    found = 0
    for row in np.argsort(-a[:, 4], kind="stable"):
        if len(b) and shares[row].max() >= BOX_OVERLAP:
            shares[:, shares[row].argmax()] = -1
            found += 1
    return found


def _sizes(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Height and width of each sample where one input is an image, as labels have them."""
    images = [f for f in feeds.values() if np.ndim(f) == 4]
    if len(images) != 1:
        return {}
    shape = images[0].shape
    return {
        "size": np.tile(
            shape[1:3] if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else shape[2:4],
            (shape[0], 1),
        )
    }
