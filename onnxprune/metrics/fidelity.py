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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from onnxprune.data.dataset import samples_of
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.ir.compared import Compared, is_tensor, tensors_to_compare
from onnxprune.ir.heads import BINARY, CLASSES, Head, find_heads, may_have_heads, tensors_of
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.metrics.base import Decoder, MetricOptions, Outputs, plain
from onnxprune.metrics.boxes import overlap
from onnxprune.metrics.decoding import detections_of
from onnxprune.metrics.head_divergence import HeadDivergence, HeadFigures, position_weights
from onnxprune.metrics.output_sums import OutputFidelity, OutputSums

SATURATED = 0.99  # mean maximum probability above which divergence at temperature 1 is near 0
BOX_OVERLAP = 0.5


class Feeds(Protocol):
    """Common interface of calibration and labeled data."""

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield feeds by input name."""


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
        0.5); None without boxes, or if neither model has any.
    box_score
        Least score of the boxes compared.
    boxes
        Number of boxes compared, of both models together; None without boxes.
    warnings
        Limits of the comparison, as sentences.
    heads
        Figures by tensor of what outputs are made of, where that is not the output itself.
    """

    outputs: Mapping[str, OutputFidelity]
    samples: int
    box_agreement: float | None = None
    box_score: float | None = None
    warnings: tuple[str, ...] = ()
    boxes: int | None = None
    heads: Mapping[str, HeadFigures] = field(default_factory=dict)

    @property
    def relative_error(self) -> float | None:
        """Return that of the worst output, or of the worst of its heads where it has some.

        NaN if one is; None if only boxes are compared.
        """
        if not self.outputs:
            return None
        split = {head.output for head in self.heads.values()}
        errors = [o.relative_error for n, o in self.outputs.items() if n not in split]
        errors += [head.relative_error for head in self.heads.values()]
        # unlike max, np.max keeps NaN
        return float(np.max(errors))

    @property
    def agreement(self) -> float | None:
        """Return the box agreement, else the least top-1, else the least location agreement.

        None if none applies.
        """
        if self.box_agreement is not None:
            return self.box_agreement
        outputs = self.outputs.values()
        # the worst output decides: a mean would hide a broken head
        top1 = [o.top1_agreement for o in outputs if o.top1_agreement is not None]
        locations = [o.location_agreement for o in outputs if o.location_agreement is not None]
        return min(top1 or locations, default=None)

    @property
    def divergence(self) -> float:
        """Return one number, 0 for no change, infinite for NaN.

        It is the relative error; if only boxes are compared, the share of boxes without a match.
        """
        value = self.relative_error
        if not self.outputs:
            # two models without any box do not differ
            value = 0.0 if self.box_agreement is None else 1.0 - self.box_agreement
        # comparisons with NaN are false, so that a broken model might pass a limit
        return float(value) if value is not None and math.isfinite(value) else math.inf

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON; None for values that are not finite."""
        values: dict[str, Any] = {
            "samples": self.samples,
            "relative_error": self.relative_error,
            "agreement": self.agreement,
            "box_agreement": self.box_agreement,
            "outputs": {n: asdict(o) for n, o in self.outputs.items()},
            "warnings": self.warnings,
            "boxes": self.boxes,
        }
        if self.heads:
            values["heads"] = {n: asdict(h) for n, h in self.heads.items()}
        return {key: plain(value) for key, value in values.items()}


class Accumulator:
    """Sums over batches: `update` with the outputs of both models, then `result`.

    Parameters
    ----------
    decoder, class_axes, box_score
        See `fidelity`.
    compared
        Tensors to compare if they are others than the outputs; `update` needs their values too.
    heads
        Heads of outputs that have some; `update` needs their values too.
    """

    def __init__(
        self,
        *,
        decoder: str | Decoder | None = None,
        class_axes: Mapping[str, int] | None = None,
        box_score: float = 0.25,
        compared: Compared | None = None,
        heads: Sequence[Head] = (),
    ) -> None:
        self._compared = compared
        self._heads = [HeadDivergence(head) for head in heads]
        self._of_heads = frozenset(tensors_of(heads))
        self._left_out: dict[str, str] = {}  # tensor -> warning
        self._options = MetricOptions(decoder=decoder)
        self._axes = dict(class_axes or {})
        self._box_score = box_score
        self._sums: dict[str, OutputSums] = {}
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
        inner = self._compared.inner if self._compared else ()
        own = self._compared.tensors if self._compared else ()
        hidden = (self._of_heads - set(own)).union(inner)
        outputs = [n for n in original if n not in hidden]
        # rows of such outputs are no samples
        if self._compared and feeds:
            self._samples += samples_of(feeds)
        else:
            self._samples += next((len(v) for v in original.values() if np.ndim(v)), 1)
        models = [{n: values[n] for n in outputs} for values in (original, pruned)]
        if self._update_boxes(models[0], models[1], feeds or {}):
            return
        self._update_heads(original, pruned)
        for name in self._compared.tensors if self._compared else outputs:
            if name in self._left_out:
                continue
            a, b = np.asarray(original[name]), np.asarray(pruned[name])
            if a.dtype.kind != "f":
                continue
            # the models may choose other numbers of rows in front of this tensor
            if a.shape != b.shape and name in inner:
                self._sums.pop(name, None)
                self._left_out[name] = (
                    f"tensor {name!r} is left out of the comparison: {a.shape} in the original, "
                    f"{b.shape} in the pruned model"
                )
                continue
            if a.shape != b.shape:
                raise DataError(
                    "fidelity-shape",
                    f"output {name!r}: {a.shape} in the original, {b.shape} in the pruned model",
                )
            if name not in self._sums:
                self._sums[name] = OutputSums(name, a, self._axes.get(name))
            self._sums[name].update(np.atleast_1d(a), np.atleast_1d(b))

    def _update_heads(self, original: Outputs, pruned: Outputs) -> None:
        """Add a batch to the heads; one whose shape differs is left out."""
        for divergence in list(self._heads):
            name = divergence.head.tensor
            a, b = np.asarray(original[name]), np.asarray(pruned[name])
            if a.shape != b.shape:
                self._heads.remove(divergence)
                self._left_out[name] = (
                    f"head {name!r} is left out of the comparison: {a.shape} in the original, "
                    f"{b.shape} in the pruned model"
                )
                continue
            divergence.update(a, b, position_weights(divergence.head, original))

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
        if self._boxes is None or self._options.decoder is not None:
            missed = self._compared.warnings if self._compared else ()
            warnings = (*warnings, *missed, *self._left_out.values())
        # none if only boxes are compared
        heads = {d.head.tensor: d.figures() for d in self._heads if d.errors}
        if self._boxes is None:
            return Fidelity(outputs, self._samples, warnings=warnings, heads=heads)
        matched, total = self._boxes
        # without a box, a share of 1 would be no evidence
        agreement = 2 * matched / total if total else None
        if agreement is None:
            warnings = (
                f"box agreement is not measured: no box of either model has a score of "
                f"{self._box_score:g} or more on these inputs; use real images with --data",
                *warnings,
            )
        figures = (agreement, self._box_score, warnings, total)
        return Fidelity(outputs, self._samples, *figures, heads=heads)

    def _update_boxes(
        self, original: Outputs, pruned: Outputs, feeds: Mapping[str, np.ndarray]
    ) -> bool:
        """Count matched boxes; return True if nothing else is to be compared.

        That is the case if the outputs themselves are boxes, whose rows have no common order.
        """
        if self._boxes is None:
            return False
        sizes = find_input_sizes(feeds)
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
    ModelError
        onnxruntime rejects a model, or can optimize the original but not the pruned model.
    UsageError
        `class_axes` names an output or axis that does not exist.
    """
    outputs = [o.name for o in original.proto.graph.output]
    present = {o.name for o in pruned.proto.graph.output}
    if missing := [o for o in outputs if o not in present]:
        raise DataError("fidelity-output", f"the pruned model has no output {missing[0]!r}")
    compared = _present_in(pruned, tensors_to_compare(original))
    found = find_heads(original, compared=compared) if may_have_heads(original, compared) else ()
    heads = _select_heads(pruned, found, compared)
    names = None
    if compared.warnings or heads:
        # outputs too: they may be boxes, which are compared by overlap
        tensors = [o.name for o in original.proto.graph.output if is_tensor(o)]
        own = outputs if decoder is not None else tensors
        names = list(dict.fromkeys([*own, *compared.inner, *tensors_of(heads)]))
    first, second = (Session(m, names, threads=threads) for m in (original, pruned))
    _check_optimized(first, second)
    sums = Accumulator(
        decoder=decoder,
        class_axes=class_axes,
        box_score=box_score,
        compared=compared if compared.warnings or heads else None,
        heads=heads,
    )
    for feeds, expected in first.run_each(data.batches(batch_size)):
        sums.update(expected, second.run(feeds), feeds)
    return sums.result()


def _check_optimized(original: Session, pruned: Session) -> None:
    """Raise a ModelError if onnxruntime optimizes the original but not the pruned model."""
    if original.optimized and not pruned.optimized:
        raise ModelError(
            "cut-not-optimized",
            "onnxruntime runs the original with its optimizations, but the pruned model only "
            "without: its optimizer rejects the pruned graph",
        )


def _select_heads(pruned: Model, heads: Sequence[Head], compared: Compared) -> list[Head]:
    """Return the heads that are not outputs themselves, of those whose tensors both models have."""
    computed = {o for node in pruned.proto.graph.node for o in node.output}
    missing = {h.output for h in heads if not computed.issuperset(tensors_of([h]))}
    return [
        head
        for head in heads
        if (head.tensor not in compared.tensors or head.kind in (BINARY, CLASSES) or head.score)
        and head.output not in missing
    ]


def _present_in(pruned: Model, compared: Compared) -> Compared:
    """Return the comparison without the inner tensors that the pruned model does not compute."""
    computed = {o for node in pruned.proto.graph.node for o in node.output}
    missing = [n for n in compared.inner if n not in computed]
    if not missing:
        return compared
    warnings = [
        f"tensor {n!r} is left out of the comparison: the pruned model does not compute it"
        for n in missing
    ]
    return Compared(
        tuple(n for n in compared.tensors if n not in missing),
        tuple(n for n in compared.inner if n not in missing),
        (*compared.warnings, *warnings),
    )


def common_boxes(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many detections of `a` (n, 6) match one of `b`: same class, IoU >= 0.5.

    Each is used once, the best score of `a` first.
    """
    shares = overlap(a, b)
    # boxes of two classes never match
    shares[a[:, 5][:, None] != b[:, 5][None]] = -1
    count = 0
    for row in np.argsort(-a[:, 4], kind="stable"):
        if len(b) and shares[row].max() >= BOX_OVERLAP:
            # each box of `b` matches once
            shares[:, shares[row].argmax()] = -1
            count += 1
    return count


def find_input_sizes(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return {"size": height and width per sample}, as in labels; {} unless one input is 4-D."""
    images = [f for f in feeds.values() if np.ndim(f) == 4]
    if len(images) != 1:
        return {}
    shape = images[0].shape
    # by the lengths that channels of images have: the file does not say the layout
    channels_last = shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
    size = shape[1:3] if channels_last else shape[2:4]
    return {"size": np.tile(size, (shape[0], 1))}
