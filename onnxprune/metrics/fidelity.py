"""Fidelity of a pruned model: distance of its outputs to the original's on the same inputs.

No labels are needed. Figures are summed batch by batch, so that memory is one batch of both models'
outputs. A figure that does not apply to an output is None:

- relative error, normalized squared error, largest difference: every float output;
- top-1 agreement and tempered divergence: outputs with one row of class scores per sample,
  (n, classes) with trailing axes of length 1, and outputs whose class axis the caller names
  (`class_axes`, such as -1 for the logits of a language model or 1 for segmentation), where a row
  is one position;
- location agreement: 4-D outputs with other than 1 or 3 channels (score maps, not images), the
  share of positions with the same largest channel;
- box agreement: with a decoder, or if the outputs are boxes, scores and classes (then nothing else
  is compared, as such rows are sorted by score).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.metrics.base import Decoder, MetricOptions, Outputs, plain
from onnxprune.metrics.boxes import detections_of, overlap
from onnxprune.metrics.tempered import Tempered

SATURATED = 0.99  # mean maximum probability above which divergence at temperature 1 is near 0
BOX_OVERLAP = 0.5
IMAGE_CHANNELS = (1, 3)
# values of an output converted to float64 at a time: 8 MB, of which a few temporaries exist
PIECE_VALUES = 1 << 20
ROUNDING = 1e-9  # variance below this share of the power is rounding error


class Feeds(Protocol):
    """Common interface of calibration and labeled data."""

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield feeds by input name."""


@dataclass(frozen=True)
class OutputFidelity:
    """Figures of one output, original a against pruned b, over all values of all samples.

    Attributes
    ----------
    relative_error
        ||a - b|| / ||a||.
    nmse
        ||a - b||^2 / ||a - mean of its channel||^2; 1 if b is as good as a constant per channel.
    max_abs
        Largest |a - b|.
    top1_agreement
        Share of rows with the same largest value.
    kl
        Mean over rows of KL(softmax(a / T) || softmax(b / T)) in nats.
    temperature
        T of `kl`.
    max_probability
        Mean over rows of the original's largest probability at temperature 1.
    location_agreement
        Share of positions with the same largest channel.
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
    """Fidelity of a model.

    Attributes
    ----------
    outputs
        Figures by output name.
    samples
        Number of samples.
    box_agreement
        2 m / (boxes of a + boxes of b), m being the boxes of both models (same class, IoU at least
        0.5); 1 if neither has any; None without boxes.
    box_score
        Least score of the boxes compared.
    warnings
        Limits of the comparison, as sentences.
    """

    outputs: Mapping[str, OutputFidelity]
    samples: int
    box_agreement: float | None = None
    box_score: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def relative_error(self) -> float | None:
        """Return that of the worst output; NaN if one is; None if only boxes are compared."""
        if not self.outputs:
            return None
        return float(np.max([o.relative_error for o in self.outputs.values()]))

    @property
    def agreement(self) -> float | None:
        """Return the box agreement, else the least top-1, else the least location agreement.

        None if none applies.
        """
        if self.box_agreement is not None:
            return self.box_agreement
        outputs = self.outputs.values()
        top1 = [o.top1_agreement for o in outputs if o.top1_agreement is not None]
        locations = [o.location_agreement for o in outputs if o.location_agreement is not None]
        return min(top1 or locations, default=None)

    @property
    def divergence(self) -> float:
        """Return one number, 0 for no change, infinite for NaN.

        It is the relative error; if only boxes are compared, the share of boxes without a match.
        """
        value = self.relative_error if self.outputs else 1.0 - (self.box_agreement or 0.0)
        return float(value) if value is not None and math.isfinite(value) else math.inf

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON; None for values that are not finite."""
        values = {
            "samples": self.samples,
            "relative_error": self.relative_error,
            "agreement": self.agreement,
            "box_agreement": self.box_agreement,
            "outputs": {n: asdict(o) for n, o in self.outputs.items()},
            "warnings": self.warnings,
        }
        return {key: plain(value) for key, value in values.items()}


class Accumulator:
    """Sums over batches: `update` with the outputs of both models, then `result`.

    Parameters
    ----------
    decoder, class_axes, box_score
        See `fidelity`.
    """

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
        self._boxes: list[int] | None = [0, 0]  # matched pairs, boxes; None: outputs are no boxes
        self._samples = 0

    def update(
        self, original: Outputs, pruned: Outputs, feeds: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Add one batch.

        Parameters
        ----------
        feeds
            Inputs of the batch, needed for their size if boxes are in pixels.

        Raises
        ------
        DataError
            The two models' outputs differ in shape.
        UsageError
            `class_axes` names an output or axis that does not exist.
        """
        if unknown := sorted(set(self._axes) - set(original)):
            raise UsageError(
                "fidelity-output",
                f"class_axes: the model has no output {unknown[0]!r}; its outputs are "
                f"{', '.join(original)}",
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
        """Return the figures so far; DataError if no batch was seen."""
        if not self._samples:
            raise DataError("data-empty", "fidelity: no sample was seen")
        outputs = {n: s.result() for n, s in self._sums.items()}
        warnings = tuple(
            f"output {n!r}: mean maximum probability {o.max_probability:.4f} > {SATURATED}: the "
            f"inputs look memorized; divergence is given at temperature {o.temperature:.3g}; use "
            "inputs that the model was not trained on"
            for n, o in outputs.items()
            if o.max_probability is not None and o.max_probability > SATURATED
        )
        if self._boxes is None:
            return Fidelity(outputs, self._samples, warnings=warnings)
        matched, total = self._boxes
        agreement = 2 * matched / total if total else 1.0
        return Fidelity(outputs, self._samples, agreement, self._box_score, warnings)

    def _update_boxes(
        self, original: Outputs, pruned: Outputs, feeds: Mapping[str, np.ndarray]
    ) -> bool:
        """Count matched boxes; return True if nothing else is to be compared.

        That is the case if the outputs themselves are boxes, whose rows have no common order.
        """
        if self._boxes is None:
            return False
        sizes = _input_sizes(feeds)
        try:
            boxes = [detections_of(o, sizes, self._options) for o in (original, pruned)]
        except (UsageError, DataError):
            # without a decoder this means that the outputs are no boxes
            if self._options.decoder is not None:
                raise
            self._boxes = None
            return False
        for a, b in zip(*boxes, strict=False):
            a, b = (d[d[:, 4] >= self._box_score] for d in (a, b))
            self._boxes[0] += common_boxes(a, b)
            self._boxes[1] += len(a) + len(b)
        return self._options.decoder is None


class _OutputSums:
    """Running sums of one output.

    Attributes
    ----------
    axis
        Class axis; None if there is none.
    locations
        Whether the output is a score map.
    error, power, largest
        Sums of (a - b)^2 and a^2, largest |a - b|.
    channel_sums, channel_count
        Sum of a per channel and number of values per channel; None if the number of channels
        changes between batches.
    same, rows
        Rows or positions with the same largest class, and all.
    """

    def __init__(self, name: str, first: np.ndarray, axis: int | None) -> None:
        if axis is not None and not -first.ndim <= axis < first.ndim:
            raise UsageError(
                "fidelity-axis",
                f"class_axes: output {name!r} of shape {first.shape} has no axis {axis}",
            )
        flat = first.ndim >= 2 and first.shape[1] > 1 and math.prod(first.shape[2:]) == 1
        self.axis = 1 if axis is None and flat else axis
        is_map = first.ndim == 4 and first.shape[1] not in IMAGE_CHANNELS
        self.locations = self.axis is None and is_map
        self.error = self.power = self.largest = 0.0
        self.channel_sums: np.ndarray | None = np.zeros(first.shape[1] if first.ndim > 1 else 1)
        self.channel_count = 0
        self.same = self.rows = 0
        self.tempered = Tempered() if self.axis is not None else None

    def update(self, a: np.ndarray, b: np.ndarray) -> None:
        """Add one batch of both models, converted to float64 a few samples at a time."""
        step = len(a)
        # a class axis of 0 cannot be split
        if self.axis is None or self.axis % a.ndim:
            step = max(1, PIECE_VALUES // max(1, a[:1].size))
        for start in range(0, len(a), step):
            piece = slice(start, start + step)
            self._add(a[piece].astype(np.float64), b[piece].astype(np.float64))

    def _add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Add float64 values."""
        gap = np.abs(a - b)
        self.error += float(np.sum(gap * gap))
        self.power += float(np.sum(a * a))
        if np.isnan(gap).any():
            self.largest = math.nan
        else:
            self.largest = max(self.largest, float(gap.max(initial=0.0)))
        self._add_channels(a)
        axis = 1 if self.locations else self.axis
        if axis is not None:
            # argmax of NaN is the NaN, which must not count as agreement
            agree = (a.argmax(axis) == b.argmax(axis)) & ~np.isnan(b).any(axis)
            self.same, self.rows = self.same + int(agree.sum()), self.rows + agree.size
        if self.tempered is not None and self.axis is not None:
            self.tempered.update(*(np.moveaxis(v, self.axis, -1) for v in (a, b)))

    def _add_channels(self, a: np.ndarray) -> None:
        """Add the sums per channel (axis 1), unless its length changes between batches."""
        if self.channel_sums is None:
            return
        if a.ndim > 1:
            sums = a.sum(tuple(k for k in range(a.ndim) if k != 1))
        else:
            sums = a.sum(keepdims=True).reshape(1)
        same_shape = sums.shape == self.channel_sums.shape
        self.channel_sums = self.channel_sums + sums if same_shape else None
        self.channel_count += a.size // max(1, len(sums))

    def result(self) -> OutputFidelity:
        """Return the figures of the output."""
        if self.power:
            relative = math.sqrt(self.error / self.power)
        else:
            relative = 0.0 if self.error == 0 else math.inf
        variance = 0.0
        if self.channel_sums is not None and self.channel_count:
            variance = self.power - float((self.channel_sums**2).sum()) / self.channel_count
        nmse = self.error / variance if variance > ROUNDING * self.power else None
        agreement = self.same / self.rows if self.rows else None
        if self.tempered is None:
            return OutputFidelity(relative, nmse, self.largest, location_agreement=agreement)
        divergence = self.tempered.result()
        return OutputFidelity(
            relative,
            nmse,
            self.largest,
            agreement,
            divergence.kl,
            divergence.temperature,
            divergence.max_probability,
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
    """Compare the outputs of both models on the same inputs.

    Parameters
    ----------
    data
        Calibration or labeled data: anything with `batches(batch_size)`. Use inputs that did not
        choose the pruned channels.
    decoder
        Boxes from raw outputs, a function or `module:function`; None = the outputs are boxes,
        scores and classes, if they have that form.
    class_axes
        Output name -> axis of its classes, if it is not one row per sample.
    box_score
        Least score of the boxes that are compared.

    Raises
    ------
    DataError
        There are no data, or the models' outputs differ in name or shape.
    UsageError
        `class_axes` names an output or axis that does not exist.
    """
    first, second = Session(original, threads=threads), Session(pruned, threads=threads)
    if missing := [o for o in first.outputs if o not in second.outputs]:
        raise DataError("fidelity-output", f"the pruned model has no output {missing[0]!r}")
    sums = Accumulator(decoder=decoder, class_axes=class_axes, box_score=box_score)
    for feeds in data.batches(batch_size):
        sums.update(first.run(feeds), second.run(feeds), feeds)
    return sums.result()


def common_boxes(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many detections of `a` (n, 6) match one of `b`: same class, IoU >= 0.5.

    Each is used once, the best score of `a` first.
    """
    shares = overlap(a, b)
    shares[a[:, 5][:, None] != b[:, 5][None]] = -1
    count = 0
    for row in np.argsort(-a[:, 4], kind="stable"):
        if len(b) and shares[row].max() >= BOX_OVERLAP:
            shares[:, shares[row].argmax()] = -1
            count += 1
    return count


def _input_sizes(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return {"size": height and width per sample}, as in labels; {} unless one input is 4-D."""
    images = [f for f in feeds.values() if np.ndim(f) == 4]
    if len(images) != 1:
        return {}
    shape = images[0].shape
    channels_last = shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
    size = shape[1:3] if channels_last else shape[2:4]
    return {"size": np.tile(size, (shape[0], 1))}
