"""Samples to tune with: in memory, in any order, with or without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from onnxprune.errors import DataError

BOXES = "boxes"  # labels whose column 0 is the sample they belong to
# batch size of reading
_PASS = 256
_MAX_SHIFT = 8  # images are shifted by up to this fraction of their side


class Labeled(Protocol):
    """Labeled data, as `onnxprune.data.labeled.open_labeled` returns them."""

    def labeled_batches(self, batch_size: int) -> Any:
        """Yield batches with feeds, labels and count."""


class Unlabeled(Protocol):
    """Calibration data, as `onnxprune.data.dataset.open_data` returns them."""

    def batches(self, batch_size: int) -> Any:
        """Yield feeds by input name."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and labels in memory.

    Attributes
    ----------
    inputs : mapping of str to numpy.ndarray
        By input name, one row per sample.
    labels : mapping of str to numpy.ndarray
        By label name, one row per sample; "boxes" has rows (m, 6 or 7) whose column 0 is the
        sample.
    """

    inputs: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.inputs.values())))

    def take(self, rows: np.ndarray) -> Samples:
        """Return the samples at these indices, in this order."""
        labels = {n: v[rows] for n, v in self.labels.items() if n != BOXES}
        if BOXES in self.labels:
            labels[BOXES] = _take_boxes(self.labels[BOXES], rows)
        return Samples({n: v[rows] for n, v in self.inputs.items()}, labels)

    def split(self, share: float, seed: int) -> tuple[Samples, Samples]:
        """Split the samples at random.

        Returns
        -------
        rest : Samples
            At least one sample.
        part : Samples
            About `share` of the samples, at least one.

        Raises
        ------
        DataError
            There are fewer than two samples.
        """
        if len(self) < 2:
            raise DataError(
                "data-samples",
                f"{len(self)} sample cannot be split into a tuning and a validation part; "
                "give at least 2, or pass validation data",
            )
        # both parts keep at least one sample
        count = min(max(1, round(share * len(self))), len(self) - 1)
        order = np.random.default_rng([seed, len(self)]).permutation(len(self))
        return self.take(np.sort(order[count:])), self.take(np.sort(order[:count]))

    def fingerprint(self) -> str:
        """Return the sha256 of all values in hex."""
        state = hashlib.sha256()
        # an input and a label may have the same name
        labels = {f"label {n}": v for n, v in self.labels.items()}
        for name, value in sorted({**self.inputs, **labels}.items()):
            state.update(f"{name}{value.dtype}{value.shape}".encode())
            state.update(np.ascontiguousarray(value).tobytes())
        return state.hexdigest()


def _take_boxes(boxes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the boxes of these samples, with column 0 renumbered."""
    parts = []
    for position, row in enumerate(rows):
        own = boxes[boxes[:, 0] == row]
        parts.append(np.column_stack([np.full(len(own), position), own[:, 1:]]))
    return np.concatenate(parts) if parts else boxes[:0]


def gather(source: Samples | Labeled | Unlabeled | Mapping[str, np.ndarray]) -> Samples:
    """Read all samples of labeled or calibration data, or of arrays by input name.

    Raises
    ------
    DataError
        No samples, samples of different sizes, or arrays of different lengths.
    """
    if isinstance(source, Samples):
        return source
    if isinstance(source, Mapping):
        return _check_lengths(Samples(dict(source)))
    feeds: list[Mapping[str, np.ndarray]] = []
    labels: list[dict[str, np.ndarray]] = []
    count = 0
    if hasattr(source, "labeled_batches"):
        for batch in source.labeled_batches(_PASS):
            # the last batch may be padded to a fixed batch size
            feeds.append({n: v[: batch.count] for n, v in batch.feeds.items()})
            labels.append(dict(batch.labels))
            if BOXES in batch.labels:
                labels[-1][BOXES] = _renumber(batch.labels[BOXES], count)
            count += batch.count
    else:
        feeds = list(source.batches(_PASS))
    if not feeds:
        raise DataError("data-empty", "the data hold no samples to tune with")
    return _check_lengths(Samples(_concatenate(feeds), _concatenate(labels) if labels else {}))


def _concatenate(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join batches along their first axis."""
    for name in parts[0]:
        shapes = {part[name].shape[1:] for part in parts}
        if len(shapes) > 1:
            raise DataError(
                "data-shape",
                f"samples of {name!r} have {len(shapes)} different sizes; tuning needs one: "
                "fix it with --shape",
            )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _renumber(boxes: np.ndarray, first: int) -> np.ndarray:
    """Return the boxes of a batch whose first sample has this number."""
    return np.concatenate([boxes[:, :1] + first, boxes[:, 1:]], 1)


def _check_lengths(samples: Samples) -> Samples:
    """Return the samples; raise DataError if their arrays do not belong together."""
    labels = {n: v for n, v in samples.labels.items() if n != BOXES}
    lengths = {n: len(v) for n, v in {**samples.inputs, **labels}.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError("data-count", f"arrays of different lengths or empty: {listed}")
    return samples


def augment(
    inputs: Mapping[str, np.ndarray], how: str, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return randomly augmented inputs.

    Parameters
    ----------
    inputs
        By input name; only arrays of rank 4, channels first, are changed.
    how
        "none", "flip" (mirror left to right) or "flip-shift" (shift by up to an eighth of the
        side as well; the uncovered border repeats the edge).
    """
    if how == "none":
        return dict(inputs)
    return {n: _augment_images(v, how, rng) if v.ndim == 4 else v for n, v in inputs.items()}


def _augment_images(images: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    """Mirror and shift images (samples, channels, height, width)."""
    count, _, height, width = images.shape
    mirrored = np.less(rng.random(count), 0.5).reshape(-1, 1, 1, 1)
    images = np.where(mirrored, images[..., ::-1], images)
    if how == "flip":
        return np.ascontiguousarray(images)
    reach = max(1, height // _MAX_SHIFT), max(1, width // _MAX_SHIFT)
    padded = np.pad(images, [(0, 0), (0, 0), (reach[0],) * 2, (reach[1],) * 2], "edge")
    corners = np.stack([rng.integers(0, 2 * r + 1, count) for r in reach], 1)
    return np.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, (top, left) in zip(padded, corners, strict=True)
        ]
    )
