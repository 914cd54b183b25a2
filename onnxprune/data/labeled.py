"""Labeled data: model inputs as for calibration, with the labels of each sample.

Sources are:

- an .npz file with `images` uint8 (n, H, W[, C]), or encoded images as one blob (`jpeg` or `png`,
  uint8, and `offsets`, int (n + 1,)), or arrays by input name; in addition label arrays with n rows
  (`labels`, `masks`, `targets`, or any name) and `boxes` float (m, 6 or 7), whose column 0 is the
  sample
- a folder with one subfolder of images per class
- any object with the methods of `LabeledSource`
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from onnxprune.data.arrays import update_hash
from onnxprune.data.dataset import group_alike
from onnxprune.data.images import decode
from onnxprune.data.inputs import Batch, Inputs, read_inputs
from onnxprune.data.objects import load_arrays, open_labeled_object
from onnxprune.data.preprocess import DEFAULT, ImageAxes, Preprocess, channels_of
from onnxprune.data.sources import IMAGE_SUFFIXES, find_files
from onnxprune.errors import DataError
from onnxprune.files import sha256
from onnxprune.ir.model import ModelView
from onnxprune.named import Named

BOXES = "boxes"
SIZE = "size"  # label that is added for image inputs: height and width of the input
BLOBS = ("jpeg", "png")


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


class LabeledSource(Protocol):
    """Numbered samples with labels."""

    count: int

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Return (origin for messages, arrays by input name, labels by name) of one sample.

        All arrays are without the batch axis.
        """

    def describe(self) -> str:
        """Return kind and location in one phrase for a report."""

    def digest(self) -> str:
        """Return a hex sha256 of the content."""


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
    """

    source: LabeledSource
    inputs: Inputs
    chosen: tuple[int, ...]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.chosen)

    def describe(self) -> str:
        """Return one line for a report."""
        return f"{self.samples} labeled {self.source.describe()}"

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
            yield _Sample(self.inputs.sample(raw, where), dict(labels))

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
        images = _find_image_inputs(self.inputs)
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
        An .npz file, a folder with one subfolder per class, or a LabeledSource.
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
        The data do not exist, have no labels, or contain arrays of different lengths.
    """
    known = read_inputs(inputs, preprocess, shapes, batch_axes, model)
    source = _open(spec, known) if isinstance(spec, (str, Path)) else spec
    indices = list(range(source.count))
    if samples is not None and samples < source.count:
        generator = np.random.default_rng(seed)
        # ascending, so that stored samples are read in their order
        indices = sorted(generator.choice(source.count, samples, replace=False).tolist())
    return LabeledData(source, known, tuple(indices))


def _open(spec: str | Path, inputs: Inputs) -> LabeledSource:
    if isinstance(spec, Named):
        if isinstance(spec.value, Mapping):
            return LabeledArrays(spec, inputs)
        return open_labeled_object(spec, inputs)
    path = Path(spec)
    if not path.exists():
        raise DataError("data-missing", f"no data at {path}: the file or folder does not exist")
    if path.is_dir():
        return ClassFolders(path, inputs)
    if path.suffix.lower() != ".npz":
        raise DataError(
            "data-kind",
            f"{path}: labeled data are an .npz file or a folder with one subfolder per class",
        )
    return LabeledArrays(path, inputs)


class ClassFolders:
    """A folder with one subfolder of images per class.

    Class indices are the subfolders' names if all of them are numbers, else their sorted positions.
    """

    def __init__(self, path: Path, inputs: Inputs) -> None:
        names = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        # names that are numbers are class indices, so that 10 does not sort before 2
        numbered = all(n.isdecimal() for n in names)
        self.classes = {n: int(n) if numbered else k for k, n in enumerate(names)}
        self.files: list[tuple[Path, int]] = []
        for name in names:
            for file in find_files(path / name, IMAGE_SUFFIXES, below=True):
                self.files.append((file, self.classes[name]))
        self.count = len(self.files)
        self.path, self.inputs = path, inputs
        if not self.files:
            raise DataError(
                "data-empty",
                f"{path} contains no subfolders with images; "
                "put labeled images into one subfolder per class",
            )
        self.name, self.channels = _find_image_input(inputs, str(path))

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Return an image's pixels and its class as `labels`."""
        file, label = self.files[index]
        return str(file), {self.name: decode(file, self.channels)}, {"labels": np.array(label)}

    def describe(self) -> str:
        """Return a phrase such as "images of 10 classes in val"."""
        return f"images of {len(self.classes)} classes in {self.path}"

    def digest(self) -> str:
        """Return the hex sha256 of all files' bytes and labels; computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        lines = "".join(f"{sha256(f)} {label}\n" for f, label in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()


class LabeledArrays:
    """An .npz file as described in the module's documentation, loaded into memory; or a dict."""

    def __init__(self, path: Path | Named, inputs: Inputs) -> None:
        self.path, self.inputs = path, inputs
        arrays = load_arrays(path)
        self.blob = next((b for b in BLOBS if b in arrays), None)
        # first, because an input may itself be called images
        if all(name in arrays for name in inputs.items):
            self.data = {name: arrays.pop(name) for name in inputs.items}
            self.pieces = {
                name: inputs.pieces(name, a.shape, a.dtype, str(path))
                for name, a in self.data.items()
            }
            self.count = inputs.common_count(self.pieces, str(path))
            self.data = {name: self.pieces[name].view(a) for name, a in self.data.items()}
        elif "images" in arrays or (self.blob and "offsets" in arrays):
            self.name, self.channels = _find_image_input(inputs, str(path))
            keys = ("images",) if "images" in arrays else (str(self.blob), "offsets")
            self.data = {key: arrays.pop(key) for key in keys}
            # n samples have n + 1 offsets
            self.count = len(self.data[keys[-1]]) - (len(keys) - 1)
        else:
            raise DataError(
                "data-names",
                f"{path} has {', '.join(sorted(arrays))}; it must have images, jpeg or png with "
                f"offsets, or {', '.join(inputs.items)}",
            )
        self.boxes = arrays.pop(BOXES, None)
        # any other array with a row per sample is a label
        self.labels = {
            name: a
            for name, a in arrays.items()
            if a.ndim and len(a) == self.count and a.dtype.kind in "iufb"
        }
        self._check(arrays)

    def _check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Check the label arrays; `arrays` are those that are not inputs."""
        # arrays of other names may be anything; these are meant as labels
        for name in ("labels", "masks", "targets"):
            if name in arrays and name not in self.labels:
                raise DataError(
                    "data-labels",
                    f"{self.path}: {name} has shape {arrays[name].shape}, "
                    f"which does not match the {self.count} samples",
                )
        if self.boxes is not None and (self.boxes.ndim != 2 or self.boxes.shape[1] not in (6, 7)):
            raise DataError(
                "data-labels",
                f"{self.path}: boxes have shape {self.boxes.shape}; it must be (m, 6): sample, "
                "class, center x, center y, width, height",
            )
        if not self.labels and self.boxes is None:
            raise DataError(
                "data-labels",
                f"{self.path} has no labels: no array of {self.count} rows besides the inputs, "
                "and no boxes",
            )

    @cached_property
    def _boxes_of(self) -> list[np.ndarray]:
        assert self.boxes is not None
        return [self.boxes[self.boxes[:, 0] == i] for i in range(self.count)]

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Return one sample with all its labels."""
        where = f"{self.path} sample {index}"
        labels = {name: array[index] for name, array in self.labels.items()}
        if self.boxes is not None:
            labels[BOXES] = self._boxes_of[index]
        # data by input name may contain an input called images
        if "images" in self.data and "images" not in self.inputs.items:
            return where, {self.name: self.data["images"][index]}, labels
        if "offsets" in self.data and "offsets" not in self.inputs.items:
            start, end = (int(v) for v in self.data["offsets"][index : index + 2])
            encoded = self.data[str(self.blob)][start:end].tobytes()
            return where, {self.name: decode_bytes(encoded, self.channels, where)}, labels
        sample = {
            name: array[0 if self.pieces[name].count is None else index]
            for name, array in self.data.items()
        }
        return where, sample, labels

    def describe(self) -> str:
        """Return a phrase such as "samples from val.npz"."""
        return f"samples from {self.path}"

    def digest(self) -> str:
        """Return the hex sha256 of the file; computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        if not isinstance(self.path, Named):
            return sha256(self.path)
        state = hashlib.sha256()
        update_hash(state, load_arrays(self.path))
        return state.hexdigest()


def decode_bytes(data: bytes, channels: int, where: str) -> np.ndarray:
    """Return the 8-bit pixels of an encoded image, (height, width, channels), RGB.

    Raises
    ------
    DataError
        The bytes are not an image, or one of more than 8 bits per channel.
    """
    try:
        return decode(io.BytesIO(data), channels)
    # the message of `decode` names its source, which is only a buffer here
    except DataError:
        raise DataError(
            "data-image", f"{where}: its {len(data)} bytes are not an 8-bit image"
        ) from None


def _find_image_inputs(inputs: Inputs) -> list[tuple[str, ImageAxes]]:
    """Return (name, axes) of the image inputs."""
    images = []
    for name in inputs.items:
        axes = inputs.image(name)
        if axes is not None:
            images.append((name, axes))
    return images


def _find_image_input(inputs: Inputs, where: str) -> tuple[str, int]:
    """Return (name, channels) of the model's only input, which must be an image."""
    images = _find_image_inputs(inputs)
    if len(inputs.items) != 1 or not images:
        raise DataError(
            "data-shape",
            f"{where}: images feed a model with one image input; this model takes "
            f"{', '.join(inputs.items)}; provide arrays by input name",
        )
    name, axes = images[0]
    return name, channels_of(inputs.items[name].shape, axes)


def _prepend_row(boxes: np.ndarray, row: int) -> np.ndarray:
    """Return float64 boxes with the number of the row in column 0."""
    # a copy, because column 0 of the source is the sample
    boxes = np.array(boxes, np.float64)
    boxes[:, 0] = row
    return boxes
