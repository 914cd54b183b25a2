"""Samples that tuning draws from: in memory, in any order, with labels where there are some."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from onnxprune.errors import DataError

BOXES = "boxes"  # labels whose column 0 is the sample they belong to
_PASS = 256


class Labeled(Protocol):
    """What `evaluate.data.open_labeled` gives."""

    def labeled_batches(self, batch_size: int) -> Any:
        """Batches with feeds, labels and count."""


class Unlabeled(Protocol):
    """What `calibrate.data.open_data` gives."""

    def batches(self, batch_size: int) -> Any:
        """Feeds by input name."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and labels by name, a row a sample; `boxes` holds (m, 6 or 7) rows whose column 0 is the sample."""

    inputs: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, rows: np.ndarray) -> Samples:
        """The samples at these indices, in this order."""
        labels = {n: v[rows] for n, v in self.labels.items() if n != BOXES}
        if BOXES in self.labels:
            boxes = self.labels[BOXES]
            parts = [boxes[boxes[:, 0] == r] for r in rows]
            labels[BOXES] = (
                np.concatenate(
                    [np.column_stack([np.full(len(p), i), p[:, 1:]]) for i, p in enumerate(parts)]
                )
                if parts
                else boxes[:0]
            )
        return Samples({n: v[rows] for n, v in self.inputs.items()}, labels)

    def split(self, share: float, seed: int) -> tuple[Samples, Samples]:
        """(the rest, about `share` of the samples and at least one), drawn at random.

        Raises
        ------
        DataError
            There are fewer than two samples.
        """
        if len(self) < 2:
            raise DataError(
                "data-samples",
                f"{len(self)} sample cannot be split into some to tune and some to validate with; give more or pass validation data",
            )
        count = min(max(1, round(share * len(self))), len(self) - 1)
        order = np.random.default_rng([seed, len(self)]).permutation(len(self))
        return self.take(np.sort(order[count:])), self.take(np.sort(order[:count]))

    def fingerprint(self) -> str:
        """Hex sha256 of all values."""
        state = hashlib.sha256()
        for name, value in sorted(
            {**self.inputs, **{f"label {n}": v for n, v in self.labels.items()}}.items()
        ):
            state.update(f"{name}{value.dtype}{value.shape}".encode())
            state.update(np.ascontiguousarray(value).tobytes())
        return state.hexdigest()


def gather(source: Samples | Labeled | Unlabeled | Mapping[str, np.ndarray]) -> Samples:
    """All samples of labeled or calibration data, or arrays by input name.

    Raises
    ------
    DataError
        No samples, samples of different sizes, or arrays of different lengths.
    """
    if isinstance(source, Samples):
        return source
    if isinstance(source, Mapping):
        return _checked(Samples(dict(source)))
    feeds: list[Mapping[str, np.ndarray]] = []
    labels: list[Mapping[str, np.ndarray]] = []
    rows = 0
    if hasattr(source, "labeled_batches"):
        for batch in source.labeled_batches(_PASS):
            feeds.append({n: v[: batch.count] for n, v in batch.feeds.items()})
            labels.append(
                {n: _shifted(v, rows) if n == BOXES else v for n, v in batch.labels.items()}
            )
            rows += batch.count
    else:
        feeds = list(source.batches(_PASS))
    if not feeds:
        raise DataError("data-empty", "the data hold no samples to tune with")
    return _checked(Samples(_joined(feeds), _joined(labels) if labels else {}))


def _joined(parts: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Batches one after another."""
    shapes = {n: {p[n].shape[1:] for p in parts} for n in parts[0]}
    mixed = next((n for n, s in shapes.items() if len(s) > 1), None)
    if mixed is not None:
        raise DataError(
            "data-shape",
            f"samples of {mixed!r} have {len(shapes[mixed])} different sizes; tuning needs one: fix it with --shape",
        )
    return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}


def _shifted(boxes: np.ndarray, rows: int) -> np.ndarray:
    """Boxes of a batch that begins at sample `rows`."""
    return np.concatenate([boxes[:, :1] + rows, boxes[:, 1:]], 1)


def _checked(samples: Samples) -> Samples:
    """The same samples, or why they do not belong together."""
    lengths = {
        n: len(v)
        for n, v in {
            **samples.inputs,
            **{k: v for k, v in samples.labels.items() if k != BOXES},
        }.items()
    }
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise DataError(
            "data-count",
            "arrays of different lengths or empty: "
            + ", ".join(f"{n} {k}" for n, k in lengths.items()),
        )
    return samples


def augmented(
    inputs: Mapping[str, np.ndarray], how: str, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Inputs of rank 4, channels first, mirrored ("flip") and shifted by up to an eighth of the side ("flip-shift") at random, others as they are.

    The border that a shift uncovers repeats the edge.
    """
    return (
        {n: _augment(v, how, rng) if v.ndim == 4 else v for n, v in inputs.items()}
        if how != "none"
        else dict(inputs)
    )


def _augment(images: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    count, _, height, width = images.shape
    mirrored = np.less(rng.random(count), 0.5).reshape(-1, 1, 1, 1)
    images = np.where(mirrored, images[..., ::-1], images)
    if how == "flip":
        return np.ascontiguousarray(images)
    reach = max(1, height // 8), max(1, width // 8)
    padded = np.pad(images, [(0, 0), (0, 0), (reach[0],) * 2, (reach[1],) * 2], "edge")
    at = np.stack([rng.integers(0, 2 * r + 1, count) for r in reach], 1)
    return np.stack(
        [p[:, i : i + height, j : j + width] for p, (i, j) in zip(padded, at, strict=False)]
    )
