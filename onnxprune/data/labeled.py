"""Labeled data: model inputs as for calibration, with the labels of each sample.

Sources are the formats of `onnxprune.data.label_formats`, among them

- an .npz file with `images` uint8 (n, H, W[, C]), or encoded images as one blob (`jpeg` or `png`,
  uint8, and `offsets`, int (n + 1,)), or arrays by input name; in addition label arrays with n rows
  (`labels`, `masks`, `targets`, or any name) and `boxes` float (m, 6 to 8), whose column 0 is the
  sample
- a folder with one subfolder of images per class
- COCO JSON, YOLO text, Pascal VOC XML, folders of masks, tables, Hugging Face data sets

and any object with the methods of `LabeledSource`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnxprune.data.dataset import find_readable, group_alike
from onnxprune.data.inputs import Batch, Inputs, read_inputs
from onnxprune.data.label_formats import LabeledSource, open_source
from onnxprune.data.label_formats.base import BOXES, find_image_inputs
from onnxprune.data.label_formats.npz import LabeledArrays
from onnxprune.data.label_geometry import IMAGE_SIZE, follow_image
from onnxprune.data.objects import open_labeled_object
from onnxprune.data.preprocess import DEFAULT, Preprocess
from onnxprune.ir.model import ModelView
from onnxprune.named import Named

SIZE = "size"  # label that is added for image inputs: height and width of the input


@dataclass(frozen=True)
class LabeledBatch:
    """A feed with the labels of its samples.

    Attributes
    ----------
    feeds
        Arrays by input name, padded to a fixed batch size beyond `count`.
    labels
        Arrays by name with `count` rows each; in boxes, column 0 is the row of the sample.
    count
        Number of samples.
    """

    feeds: Batch
    labels: Mapping[str, np.ndarray]
    count: int


class _Sample(NamedTuple):
    """A converted sample and its labels, both without the batch axis."""

    feed: dict[str, np.ndarray]
    labels: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LabeledData:
    """Samples of a source, in a fixed order, for one model's inputs.

    They can be read repeatedly; one batch is in memory at a time.

    Attributes
    ----------
    source
        Where the samples and labels come from.
    inputs
        The model's inputs.
    chosen
        Indices of the selected samples.
    skipped
        Reasons of the images that cannot be decoded, which are left out with their labels.
    """

    source: LabeledSource
    inputs: Inputs
    chosen: tuple[int, ...]
    skipped: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.chosen)

    def describe(self) -> str:
        """Return one line for a report."""
        skipped = f", {len(self.skipped)} unreadable skipped" if self.skipped else ""
        return f"{self.samples} labeled {self.source.describe()}{skipped}"

    def fingerprint(self) -> str:
        """Return a hex sha256 of content, selection, preprocessing and the inputs' types."""
        parts = [
            self.source.digest(),
            list(self.chosen),
            repr(self.inputs.preprocess),
            self.inputs.signature(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def labeled_batches(self, batch_size: int) -> Iterator[LabeledBatch]:
        """Yield batches in order; a new one begins where sizes change.

        Feeds of a model with a fixed batch size are padded with copies of the last sample.
        """
        for group in group_alike(
            self._read(), self.inputs.batch or max(1, batch_size), self._can_stack
        ):
            yield self._stack(group)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield the feeds alone, as calibration data do."""
        for batch in self.labeled_batches(batch_size):
            yield batch.feeds

    def split(self, share: float, seed: int = 0) -> tuple[LabeledData, LabeledData]:
        """Draw two disjoint parts, for example to select by and to report on.

        The first has about `share` of the samples. Both keep the order of the samples.
        """
        order = np.random.default_rng(seed).permutation(self.samples)
        first = set(order[: round(share * self.samples)].tolist())
        one = tuple(i for k, i in enumerate(self.chosen) if k in first)
        other = tuple(i for k, i in enumerate(self.chosen) if k not in first)
        return replace(self, chosen=one), replace(self, chosen=other)

    def _read(self) -> Iterator[_Sample]:
        for index in self.chosen:
            where, raw, labels = self.source.read(index)
            feed = self.inputs.sample(raw, where)
            yield _Sample(feed, follow_image(labels, raw, self.inputs, where))

    def _can_stack(self, first: _Sample, other: _Sample) -> bool:
        """Return whether two samples and their labels can be stacked; boxes are concatenated."""
        return self.inputs.stackable(first.feed, other.feed) and all(
            np.shape(value) == np.shape(other.labels[name])
            for name, value in first.labels.items()
            if name != BOXES
        )

    def _stack(self, group: Sequence[_Sample]) -> LabeledBatch:
        first, feeds = group[0], [s.feed for s in group]
        feeds += [feeds[-1]] * ((self.inputs.batch or len(group)) - len(group))
        labels = {}
        for name in first.labels:
            if name != BOXES:
                labels[name] = np.stack([s.labels[name] for s in group])
        # samples have different numbers of boxes, so these are concatenated
        if BOXES in first.labels:
            boxes = [_prepend_row(s.labels[BOXES], row) for row, s in enumerate(group)]
            labels[BOXES] = np.concatenate(boxes)
        size = self._find_image_size(first.feed)
        if SIZE not in labels and size is not None:
            labels[SIZE] = np.tile(size, (len(group), 1))
        return LabeledBatch(self.inputs.stack(feeds), labels, len(group))

    def _find_image_size(self, sample: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
        """Return (height, width) of the sample if the model has exactly one image input."""
        images = find_image_inputs(self.inputs)
        # of several images, labels can refer to any
        if len(images) != 1:
            return None
        name, axes = images[0]
        shape = sample[name].shape
        missing = 4 - len(shape)  # the batch axis, unless the input is shared
        return shape[axes.height - missing], shape[axes.width - missing]


def open_labeled(
    spec: str | Path | LabeledSource,
    inputs: Mapping[str, tuple[Sequence[Any], str]],
    *,
    samples: int | None = None,
    seed: int = 0,
    preprocess: Preprocess = DEFAULT,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_axes: Mapping[str, int | str] | None = None,
    model: ModelView | None = None,
) -> LabeledData:
    """Open labeled samples for a model.

    Parameters
    ----------
    spec
        A file or folder of a format in `FORMATS`, NAME:PATH with the name of one, or a
        LabeledSource.
    inputs
        name -> (shape, onnxruntime's type string), as in `Session.inputs`.
    samples
        Number of samples to draw at random, kept in order; None for all.
    seed
        Seed of the draw.
    preprocess
        For images and for uint8 arrays of images that feed a float input.
    shapes
        name -> full shape for inputs with dynamic sizes.
    batch_axes, model
        As in `read_inputs`.

    Raises
    ------
    DataError
        The data do not exist, have no labels, contain arrays of different lengths, or none of
        their images can be decoded.
    """
    known = read_inputs(inputs, preprocess, shapes, batch_axes, model)
    if isinstance(spec, Named):
        source: LabeledSource = _open_object(spec, known)
    else:
        source = open_source(spec, known) if isinstance(spec, (str, Path)) else spec
    indices = list(range(source.count))
    if samples is not None and samples < source.count:
        generator = np.random.default_rng(seed)
        # ascending, so that stored samples are read in their order
        indices = sorted(generator.choice(source.count, samples, replace=False).tolist())
    kept, skipped = find_readable(source, indices)
    return LabeledData(source, known, tuple(kept), skipped)


def _open_object(spec: Named, inputs: Inputs) -> LabeledSource:
    """Open arrays by name, or another object in memory."""
    if isinstance(spec.value, Mapping):
        return LabeledArrays(spec, inputs)
    return open_labeled_object(spec, inputs)


def _prepend_row(boxes: np.ndarray, row: int) -> np.ndarray:
    """Return float64 boxes with the number of the row in column 0."""
    # a copy, because column 0 of the source is the sample
    boxes = np.array(boxes, np.float64)
    boxes[:, 0] = row
    return boxes


__all__ = [
    "BOXES",
    "IMAGE_SIZE",
    "SIZE",
    "LabeledBatch",
    "LabeledData",
    "LabeledSource",
    "open_labeled",
]
