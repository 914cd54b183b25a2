"""Raw outputs of a detector, and what all decoders share: cells, logits, roles of outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

# strides of feature maps that detectors use, the usual ones first
STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32), (8, 16, 32, 64, 128))
PYRAMID = (8, 16, 32, 64, 128)  # of RetinaNet and FCOS
MASK_STRIDE = 4  # of the prototypes of masks
_CENTER = re.compile(r"cent(er|re)ness|ctr")
_BOXES = re.compile(r"box|reg|loc|delta|dis_pred")
_SCORES = re.compile(r"cls|class|score|conf|logit|prob")


class Candidates(NamedTuple):
    """Boxes of all positions of a head.

    Attributes
    ----------
    corners
        x1, y1, x2, y2 in pixels of the input, (n, positions, 4).
    scores
        Score per class, (n, positions, classes).
    """

    corners: np.ndarray
    scores: np.ndarray


class Roles(NamedTuple):
    """Outputs by what they mean, levels concatenated: (n, positions, values)."""

    scores: np.ndarray
    boxes: np.ndarray
    centers: np.ndarray | None


@dataclass(frozen=True)
class Raw:
    """Outputs of one batch.

    Attributes
    ----------
    outputs
        Float arrays by output name.
    size
        Height and width of the model's input.
    samples
        Number of samples.
    """

    outputs: Mapping[str, np.ndarray]
    size: tuple[int, int]
    samples: int

    @cached_property
    def masks(self) -> int:
        """Number of prototypes of masks: the channels of the only map at stride 4; 0 without."""
        expected = tuple(-(-side // MASK_STRIDE) for side in self.size)
        maps = [v for v in self.outputs.values() if v.ndim == 4 and v.shape[2:] == expected]
        return maps[0].shape[1] if len(maps) == 1 else 0

    def flat(self) -> Iterator[np.ndarray]:
        """Yield the outputs of rank 3."""
        for value in self.outputs.values():
            if value.ndim == 3:
                yield value

    def maps(self, channels: int | None = None) -> list[np.ndarray]:
        """Return the outputs of rank 4 by falling size, if all are levels at known strides.

        Empty if they differ in channels, or have other than `channels`.
        """
        maps = sorted((v for v in self.outputs.values() if v.ndim == 4), key=lambda v: -v.shape[2])
        strides = tuple(round(self.size[0] / m.shape[2]) for m in maps)
        alike = len({m.shape[1] for m in maps}) == 1 and strides in STRIDES
        if not alike or (channels is not None and maps[0].shape[1] != channels):
            return []
        expected = [grid(self.size, s) for s in strides]
        return maps if [m.shape[2:] for m in maps] == expected else []


def grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return rows and columns of a map of a stride."""
    return -(-size[0] // stride), -(-size[1] // stride)


def count_cells(size: tuple[int, int], strides: Sequence[int]) -> int:
    """Return the number of positions of all maps."""
    return sum(rows * columns for rows, columns in (grid(size, s) for s in strides))


def find_strides(count: int, size: tuple[int, int]) -> tuple[int, ...] | None:
    """Return the strides whose maps have this many positions, None if no usual ones do."""
    return next((s for s in STRIDES if count_cells(size, s) == count), None)


def cells(
    size: tuple[int, int], strides: Sequence[int], anchors: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return column and row of each position, (positions, 2), and its stride, (positions, 1).

    Positions run over rows, columns and anchors of the first stride, then of the next.
    """
    places, scales = [], []
    for stride in strides:
        rows, columns = np.indices(grid(size, stride))
        place = np.stack([columns.ravel(), rows.ravel()], 1).astype(np.float64)
        places.append(np.repeat(place, anchors, 0))
        scales.append(np.full((len(places[-1]), 1), float(stride)))
    return np.concatenate(places), np.concatenate(scales)


def flatten(level: np.ndarray, anchors: int = 1) -> np.ndarray:
    """Return (n, positions, values) of a map (n, anchors * values, rows, columns)."""
    n, channels, rows, columns = level.shape
    parts = level.reshape(n, anchors, channels // anchors, rows, columns)
    return parts.transpose(0, 3, 4, 1, 2).reshape(n, -1, channels // anchors)


def join(maps: Sequence[np.ndarray], anchors: int = 1) -> np.ndarray:
    """Return the positions of all maps as one array (n, positions, values)."""
    return np.concatenate([flatten(m, anchors) for m in maps], 1)


def find_roles(raw: Raw, anchors: int = 1) -> Roles | None:
    """Return scores, boxes and centerness of a head with one output, or one per level, for each.

    Parameters
    ----------
    anchors
        Boxes per position, if outputs are maps.

    Returns
    -------
    Roles or None
        None if the outputs do not have these roles, or differ in their positions.
    """
    parts: dict[str, list[np.ndarray]] = {"scores": [], "boxes": [], "centers": []}
    flat: dict[str, np.ndarray] = {}
    for name, value in raw.outputs.items():
        if value.ndim == 4 and value.shape[1] % anchors == 0:
            flat[name] = flatten(value, anchors)
        elif value.ndim == 3:
            flat[name] = value
    has_scores = any(v.shape[2] not in (1, 4) for v in flat.values())
    for name, value in flat.items():
        parts[_find_role(name.lower(), value.shape[2], has_scores)].append(value)
    joined = {}
    for role, values in parts.items():
        values.sort(key=lambda v: -v.shape[1])
        if len({v.shape[2] for v in values}) > 1:
            return None
        joined[role] = np.concatenate(values, 1) if values else None
    scores, boxes, centers = joined["scores"], joined["boxes"], joined["centers"]
    if scores is None or boxes is None or boxes.shape[2] != 4:
        return None
    if scores.shape[1] != boxes.shape[1]:
        return None
    if centers is not None and centers.shape[1:] != (scores.shape[1], 1):
        return None
    return Roles(scores, boxes, centers)


def _find_role(name: str, width: int, has_scores: bool) -> str:
    """Return the role of an output by its name, else by its values per position."""
    # "bbox_ctrness" is not boxes, so that centers come first
    if _CENTER.search(name) and width == 1:
        return "centers"
    # a name that contradicts the width is of another convention
    if _BOXES.search(name) and width == 4:
        return "boxes"
    if _SCORES.search(name):
        return "scores"
    if width == 4:
        return "boxes"
    return "centers" if width == 1 and has_scores else "scores"


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Return the logistic function, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)))


def softmax(values: np.ndarray) -> np.ndarray:
    """Return the softmax along the last axis."""
    shares = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True))


def are_shares(values: np.ndarray) -> bool:
    """Return whether all values are from 0 to 1, up to rounding of half precision."""
    return bool(values.size) and bool((values >= -1e-3).all() and (values <= 1.001).all())


def probabilities(values: np.ndarray) -> np.ndarray:
    """Return values that are probabilities as they are, logits by the logistic function."""
    return values if are_shares(values) else sigmoid(values)


def expect(logits: np.ndarray, bins: int) -> np.ndarray:
    """Return the mean of each distribution over 0 .. bins - 1: (..., k * bins) -> (..., k)."""
    shares = softmax(logits.reshape(*logits.shape[:-1], -1, bins))
    return np.asarray(shares @ np.arange(bins))


def from_center(boxes: np.ndarray) -> np.ndarray:
    """Return corners of boxes given as center x, center y, width, height."""
    half = boxes[..., 2:4] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def from_distances(centers: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Return corners from points and distances to left, top, right and bottom."""
    return np.concatenate([centers - distances[..., :2], centers + distances[..., 2:4]], -1)


def from_deltas(anchors: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Return corners of anchors (center x, center y, width, height) moved and scaled by deltas."""
    # a scale of e^4 is beyond any image; the limit prevents overflow of untrained heads
    sides = anchors[:, 2:] * np.exp(np.minimum(deltas[..., 2:], 4.0))
    return from_center(
        np.concatenate([anchors[:, :2] + deltas[..., :2] * anchors[:, 2:], sides], -1)
    )


def around(boxes: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return corners of the upright boxes around rotated ones.

    Parameters
    ----------
    boxes
        Center x, center y, width, height, (..., 4).
    angle
        In radians, (..., 1).
    """
    cosine, sine = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    width, height = boxes[..., 2:3], boxes[..., 3:4]
    sides = [width * cosine + height * sine, width * sine + height * cosine]
    return from_center(np.concatenate([boxes[..., :2], *sides], -1))
