"""Labeled data: inputs as calibration reads them, with the labels of each sample.

Kinds: an .npz file with `images` uint8 (n, H, W[, C]), or encoded images as one blob (`jpeg` or `png`, uint8, and `offsets`, int (n + 1,)), or arrays by
input name; beside them label arrays with n rows (`labels`, `masks`, `targets`, or any name) and `boxes` float (m, 6 or 7), whose column 0 is the sample.
Or a folder with one subfolder of images a class. Or any object with the few methods of LabeledSource.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from onnxprune.data.images import decode
from onnxprune.data.inputs import Inputs, read_inputs
from onnxprune.data.preprocess import DEFAULT, Preprocess, channels_of
from onnxprune.data.sources import IMAGE_SUFFIXES, find_files
from onnxprune.errors import DataError
from onnxprune.files import sha256

BOXES = "boxes"
SIZE = "size"  # label that is added for image inputs: height and width of the input
BLOBS = ("jpeg", "png")


@dataclass(frozen=True)
class Batch:
    """feeds: by input name; labels: by name, `count` rows each (boxes: column 0 is the row); a feed may be filled up beyond `count`."""

    feeds: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    count: int


class LabeledSource(Protocol):
    """Numbered samples with labels."""

    count: int

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """(where it comes from, arrays by input name without the batch axis, labels by name without the batch axis) of one sample."""

    def describe(self) -> str:
        """What and where, for one line of a report."""

    def digest(self) -> str:
        """Hex sha256 of the content."""


@dataclass(frozen=True)
class LabeledData:
    """Samples of a source, in a fixed order, for one model's inputs. Can be read as often as wanted; one batch is in memory at a time."""

    source: LabeledSource
    inputs: Inputs
    chosen: tuple[int, ...]

    @property
    def samples(self) -> int:
        """How many samples."""
        return len(self.chosen)

    def describe(self) -> str:
        """One line for a report."""
        return f"{self.samples} labeled {self.source.describe()}"

    def fingerprint(self) -> str:
        """Hex digest of content, choice, preprocessing and the inputs' types."""
        parts = [
            self.source.digest(),
            list(self.chosen),
            repr(self.inputs.preprocess),
            self.inputs.signature(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def labeled_batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches in order; a new one begins where sizes change. A model with a fixed batch gets that, the last one filled up with copies."""
        wanted = self.inputs.batch or max(1, batch_size)
        pending: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
        for index in self.chosen:
            where, raw, labels = self.source.read(index)
            sample = self.inputs.sample(raw, where)
            if pending and not (
                self.inputs.stackable(pending[0][0], sample) and _alike(pending[0][1], labels)
            ):
                yield self._batch(pending)
                pending = []
            pending.append((sample, dict(labels)))
            if len(pending) == wanted:
                yield self._batch(pending)
                pending = []
        if pending:
            yield self._batch(pending)

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """The feeds alone, as calibration data have them; one that is filled up repeats its last sample."""
        for batch in self.labeled_batches(batch_size):
            yield dict(batch.feeds)

    def split(self, share: float, seed: int = 0) -> tuple[LabeledData, LabeledData]:
        """Two disjoint parts, the first with about `share` of the samples, each in the order of the whole: one to choose by, one to report."""
        first = set(
            np.random.default_rng(seed)
            .permutation(self.samples)[: round(share * self.samples)]
            .tolist()
        )
        parts = [
            tuple(i for k, i in enumerate(self.chosen) if (k in first) is chosen)
            for chosen in (True, False)
        ]
        return replace(self, chosen=parts[0]), replace(self, chosen=parts[1])

    def _batch(self, pending: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]) -> Batch:
        samples = [s for s, _ in pending]
        filled = samples + [samples[-1]] * ((self.inputs.batch or len(samples)) - len(samples))
        labels = {n: np.stack([one[n] for _, one in pending]) for n in pending[0][1] if n != BOXES}
        if BOXES in pending[0][1]:
            labels[BOXES] = np.concatenate(
                [_renumbered(one[BOXES], row) for row, (_, one) in enumerate(pending)]
            )
        if SIZE not in labels and (size := self._size(samples[0])):
            labels[SIZE] = np.tile(size, (len(pending), 1))
        return Batch(self.inputs.stack(filled), labels, len(pending))

    def _size(self, sample: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
        """Height and width of the one image input."""
        images = [
            (n, axes) for n in self.inputs.items if (axes := self.inputs.image(n)) is not None
        ]
        if len(images) != 1:
            return None
        (name, axes), missing = images[0], 4 - sample[images[0][0]].ndim
        shape = sample[name].shape
        return shape[axes.height - missing], shape[axes.width - missing]


def open_labeled(
    spec: str | Path | LabeledSource,
    inputs: Mapping[str, tuple[Sequence[Any], str]],
    *,
    samples: int | None = None,
    seed: int = 0,
    preprocess: Preprocess = DEFAULT,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> LabeledData:
    """Labeled samples for a model.

    Parameters
    ----------
    spec
        An .npz file, a folder with one subfolder a class, or a LabeledSource.
    inputs
        name -> (shape, onnxruntime's type string), as `Session.inputs` has it.
    samples
        How many to draw at random with `seed`, kept in order; None: all.
    preprocess
        For images and for uint8 arrays of images that feed a float input.
    shapes
        name -> whole shape for inputs with dynamic sizes.

    Raises
    ------
    DataError
        Nothing there, no labels, or arrays that do not belong together.
    """
    known = read_inputs(inputs, preprocess, shapes)
    source = _open(Path(spec), known) if isinstance(spec, (str, Path)) else spec
    indices = list(range(source.count))
    if samples is not None and samples < source.count:
        indices = sorted(
            np.random.default_rng(seed).choice(source.count, samples, replace=False).tolist()
        )
    return LabeledData(source, known, tuple(indices))


def _open(path: Path, inputs: Inputs) -> LabeledSource:
    if not path.exists():
        raise DataError("data-missing", f"no data at {path}: the file or folder does not exist")
    if path.is_dir():
        return ClassFolders(path, inputs)
    if path.suffix.lower() != ".npz":
        raise DataError(
            "data-kind",
            f"{path}: labeled data are an .npz file or a folder with one subfolder a class",
        )
    return Arrays(path, inputs)


class ClassFolders:
    """A folder with one subfolder of images a class.

    Class indices are the subfolders' names where all of them are numbers, else their places in sorted order.
    """

    def __init__(self, place: Path, inputs: Inputs) -> None:
        names = sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
        numbered = all(n.isdecimal() for n in names)
        self.classes = {n: int(n) if numbered else k for k, n in enumerate(names)}
        self.files = [
            (f, self.classes[n])
            for n in names
            for f in find_files(place / n, IMAGE_SUFFIXES, below=True)
        ]
        self.count = len(self.files)
        self.place, self.inputs = place, inputs
        if not self.files:
            raise DataError(
                "data-empty",
                f"{place} holds no subfolders with images; labeled images lie in one subfolder a class",
            )
        self.name, self.channels = _image_name(inputs, str(place))

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """The image's pixels and `labels`."""
        file, label = self.files[index]
        return str(file), {self.name: decode(file, self.channels)}, {"labels": np.array(label)}

    def describe(self) -> str:
        """ "images of 10 classes in val"."""
        return f"images of {len(self.classes)} classes in {self.place}"

    def digest(self) -> str:
        """Of all files' bytes and labels; read once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(
            "".join(f"{sha256(f)} {label}\n" for f, label in self.files).encode()
        ).hexdigest()


class Arrays:
    """An .npz file as the module describes it; its arrays are in memory once they were asked for."""

    def __init__(self, path: Path, inputs: Inputs) -> None:
        self.path, self.inputs = path, inputs
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError) as problem:
            raise DataError("data-unreadable", f"cannot read {path}: {problem}") from problem
        except Exception as problem:  # zipfile and zlib errors of truncated files
            raise DataError(
                "data-unreadable", f"cannot read {path}: {type(problem).__name__}: {problem}"
            ) from problem
        self.blob = next((b for b in BLOBS if b in arrays), None)
        if all(name in arrays for name in inputs.items):
            self.data = {name: arrays.pop(name) for name in inputs.items}
            self.count = len(next(iter(self.data.values())))
        elif "images" in arrays or (self.blob and "offsets" in arrays):
            self.name, self.channels = _image_name(inputs, str(path))
            keys = ("images",) if "images" in arrays else (str(self.blob), "offsets")
            self.data = {key: arrays.pop(key) for key in keys}
            self.count = len(self.data[keys[-1]]) - (len(keys) - 1)
        else:
            raise DataError(
                "data-names",
                f"{path} has {', '.join(sorted(arrays))}; there must be images, jpeg or png with offsets, or {', '.join(inputs.items)}",
            )
        self.boxes = arrays.pop(BOXES, None)
        self.labels = {
            name: a
            for name, a in arrays.items()
            if a.ndim and len(a) == self.count and a.dtype.kind in "iufb"
        }
        self._check(arrays)

    def _check(self, rest: Mapping[str, np.ndarray]) -> None:
        for name in ("labels", "masks", "targets"):
            if name in rest and name not in self.labels:
                raise DataError(
                    "data-labels",
                    f"{self.path}: {name} is {rest[name].shape}; there are {self.count} samples",
                )
        if self.boxes is not None and (self.boxes.ndim != 2 or self.boxes.shape[1] not in (6, 7)):
            raise DataError(
                "data-labels",
                f"{self.path}: boxes are {self.boxes.shape}; they must be (m, 6): sample, class, center x, center y, width, height",
            )
        if not self.labels and self.boxes is None:
            raise DataError(
                "data-labels",
                f"{self.path} has no labels: no array of {self.count} rows beside the inputs, and no boxes",
            )

    @cached_property
    def _boxes_of(self) -> list[np.ndarray]:
        assert self.boxes is not None
        return [self.boxes[self.boxes[:, 0] == i] for i in range(self.count)]

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """One sample with all its labels."""
        where = f"{self.path} sample {index}"
        labels = {name: array[index] for name, array in self.labels.items()}
        if self.boxes is not None:
            labels[BOXES] = self._boxes_of[index]
        if "images" in self.data and "images" not in self.inputs.items:
            return where, {self.name: self.data["images"][index]}, labels
        if "offsets" in self.data and "offsets" not in self.inputs.items:
            start, end = (int(v) for v in self.data["offsets"][index : index + 2])
            return (
                where,
                {
                    self.name: decode_bytes(
                        self.data[str(self.blob)][start:end].tobytes(), self.channels, where
                    )
                },
                labels,
            )
        return (
            where,
            {
                name: array if self.inputs.items[name].shared else array[index]
                for name, array in self.data.items()
            },
            labels,
        )

    def describe(self) -> str:
        """ "samples from val.npz"."""
        return f"samples from {self.path}"

    def digest(self) -> str:
        """Of the file; read once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return sha256(self.path)


def decode_bytes(data: bytes, channels: int, where: str) -> np.ndarray:
    """The 8-bit pixels of an encoded image (height, width, channels), RGB; DataError where it is none."""
    try:
        return decode(cast(Path, io.BytesIO(data)), channels)  # Pillow opens either
    except DataError:
        raise DataError(
            "data-image", f"{where}: its {len(data)} bytes are no 8-bit image"
        ) from None


def _image_name(inputs: Inputs, where: str) -> tuple[str, int]:
    """The one image input of the model and its channels; DataError where there is none."""
    found = [(n, axes) for n in inputs.items if (axes := inputs.image(n)) is not None]
    if len(inputs.items) != 1 or not found:
        raise DataError(
            "data-shape",
            f"{where}: images feed a model with one image input; this one takes {', '.join(inputs.items)}; give arrays by input name",
        )
    name, axes = found[0]
    return name, channels_of(inputs.items[name].shape, axes)


def _alike(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """Whether the labels of two samples can be stacked."""
    return all(np.shape(first[n]) == np.shape(second[n]) for n in first if n != BOXES)


def _renumbered(boxes: np.ndarray, row: int) -> np.ndarray:
    boxes = np.array(boxes, np.float64)
    boxes[:, 0] = row
    return boxes
