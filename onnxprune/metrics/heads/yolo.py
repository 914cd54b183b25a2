"""Heads of the YOLO family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from onnxprune.metrics.heads.arrays import (
    Candidates,
    Raw,
    are_shares,
    around,
    cells,
    expect,
    find_strides,
    from_center,
    from_distances,
    join,
    probabilities,
)

DFL_BINS = 16  # bins per side of YOLOv8 and its successors
MOST_QUERIES = 1000  # boxes of a head that needs no suppression; usual are 300
_P5 = (8, 16, 32)
# widths and heights of anchors in pixels by stride, as published for COCO
ANCHORS_V5 = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
ANCHORS_V7 = (
    ((12, 16), (19, 36), (40, 28)),
    ((36, 75), (76, 55), (72, 146)),
    ((142, 110), (192, 243), (459, 401)),
)


def _with_objectness(raw: Raw, anchors: int) -> Iterator[np.ndarray]:
    """Yield outputs (n, positions, 5 + classes [+ masks]): box, objectness, classes.

    The last columns are left out where they are coefficients of masks.
    """
    for value in raw.flat():
        count, extra = value.shape[1], value.shape[2] - raw.masks
        if count % anchors or extra < 6 or find_strides(count // anchors, raw.size) is None:
            continue
        if are_shares(value[..., 4:extra]):
            yield value[..., :extra]


def _score_by_objectness(value: np.ndarray, corners: np.ndarray) -> Candidates:
    """Return candidates scored by objectness times class probability."""
    return Candidates(corners, value[..., 4:5] * value[..., 5:])


def v5(raw: Raw) -> Candidates | None:
    """Decode YOLOv3, v5 and v7 with their grid in the graph: 3 anchors per cell."""
    for value in _with_objectness(raw, 3):
        return _score_by_objectness(value, from_center(value))
    return None


def v5_maps(raw: Raw) -> Candidates | None:
    """Decode maps of YOLOv5 without their grid."""
    return _decode_anchor_maps(raw, ANCHORS_V5)


def v7_maps(raw: Raw) -> Candidates | None:
    """Decode maps of YOLOv7 without their grid."""
    return _decode_anchor_maps(raw, ANCHORS_V7)


def _decode_anchor_maps(
    raw: Raw, sizes: tuple[tuple[tuple[int, int], ...], ...]
) -> Candidates | None:
    """Decode (n, 3 * (5 + classes), rows, columns) or (n, 3, rows, columns, 5 + classes)."""
    outputs = {n: v for n, v in raw.outputs.items() if v.ndim in (4, 5)}
    folded = {
        n: v if v.ndim == 4 else v.transpose(0, 1, 4, 2, 3).reshape(len(v), -1, *v.shape[2:4])
        for n, v in outputs.items()
        if v.ndim == 4 or v.shape[1] == 3
    }
    maps = replace(raw, outputs=folded).maps()
    if len(maps) != len(sizes) or maps[0].shape[1] % 3 or maps[0].shape[1] < 18:
        return None
    # a flat output of the same export has the grid already
    if v5(raw) is not None:
        return None
    value = probabilities(join(maps, 3))
    place, stride = cells(raw.size, _P5, 3)
    anchors = [np.tile(s, (len(m[0, 0].ravel()), 1)) for s, m in zip(sizes, maps, strict=True)]
    centers = (value[..., :2] * 2 - 0.5 + place) * stride
    sides = (value[..., 2:4] * 2) ** 2 * np.concatenate(anchors)
    return _score_by_objectness(value, from_center(np.concatenate([centers, sides], -1)))


def v6(raw: Raw) -> Candidates | None:
    """Decode YOLOv6: one box per cell, and an objectness that is always 1."""
    for value in _with_objectness(raw, 1):
        if (value[..., 4] == 1).all():
            return _score_by_objectness(value, from_center(value))
    return None


def yolox(raw: Raw) -> Candidates | None:
    """Decode YOLOX: one box per cell and an objectness, with its grid in the graph or without."""
    maps = raw.maps()
    values = list(_with_objectness(raw, 1))
    if (
        maps
        and maps[0].shape[1] > 5
        and are_shares(np.concatenate([m[:, 4:].ravel() for m in maps]))
    ):
        values.append(join(maps))
    for value in values:
        if (value[..., 4] == 1).all():
            continue
        strides = find_strides(value.shape[1], raw.size)
        assert strides is not None
        place, stride = cells(raw.size, strides)
        boxes = value[..., :4]
        # centers with the grid are about those of the cells, else offsets of about 0
        gap = np.abs(boxes[..., :2] - (place + 0.5) * stride).mean()
        if np.abs(boxes[..., :2]).mean() < gap:
            sides = np.exp(np.minimum(boxes[..., 2:], 10.0)) * stride
            boxes = np.concatenate([(boxes[..., :2] + place) * stride, sides], -1)
        return _score_by_objectness(value, from_center(boxes))
    return None


def _columns_first(raw: Raw) -> Iterator[np.ndarray]:
    """Yield outputs (n, 4 + classes + more, positions) as (n, positions, values)."""
    for value in raw.flat():
        if value.shape[1] > 4 and find_strides(value.shape[2], raw.size) is not None:
            yield value.transpose(0, 2, 1)


def _count_scores(value: np.ndarray) -> int:
    """Return how many columns from 4 on are probabilities, up to the first that is not."""
    columns = value[..., 4:]
    inside = np.asarray((columns >= -1e-3) & (columns <= 1.001)).reshape(-1, columns.shape[-1])
    shares = inside.all(axis=0)
    return columns.shape[-1] if shares.all() else int(shares.argmin())


def v8(raw: Raw) -> Candidates | None:
    """Decode YOLOv8 to YOLO12: one box per cell and no objectness."""
    for value in _columns_first(raw):
        if are_shares(value[..., 4:]) and not raw.masks:
            return Candidates(from_center(value), value[..., 4:])
    return None


def v8_maps(raw: Raw) -> Candidates | None:
    """Decode maps (n, 64 + classes, rows, columns) of YOLOv8: distances as distributions."""
    maps = raw.maps()
    channels = 4 * DFL_BINS
    if not maps or maps[0].shape[1] <= channels:
        return None
    value = join(maps)
    strides = find_strides(value.shape[1], raw.size)
    assert strides is not None
    place, stride = cells(raw.size, strides)
    distances = expect(value[..., :channels], DFL_BINS) * stride
    corners = from_distances((place + 0.5) * stride, distances)
    return Candidates(corners, probabilities(value[..., channels:]))


def v8_seg(raw: Raw) -> Candidates | None:
    """Decode the boxes of YOLOv8-seg: the last columns are coefficients of the masks."""
    for value in _columns_first(raw):
        end = value.shape[2] - raw.masks
        if raw.masks and end > 4 and are_shares(value[..., 4:end]):
            return Candidates(from_center(value), value[..., 4:end])
    return None


def v8_pose(raw: Raw) -> Candidates | None:
    """Decode the boxes of YOLOv8-pose: keypoints of 2 or 3 numbers follow the scores."""
    for value in _columns_first(raw):
        count = _count_scores(value)
        points = value.shape[2] - 4 - count
        # one trailing column is an angle
        if count and points > 1 and not raw.masks and (points % 3 == 0 or points % 2 == 0):
            return Candidates(from_center(value), value[..., 4 : 4 + count])
    return None


def v8_obb(raw: Raw) -> Candidates | None:
    """Decode YOLOv8-obb to upright boxes around the rotated ones: the last column is the angle."""
    for value in _columns_first(raw):
        if value.shape[2] > 5 and not raw.masks and _count_scores(value) == value.shape[2] - 5:
            return Candidates(around(value[..., :4], value[..., -1:]), value[..., 4:-1])
    return None


def v10(raw: Raw) -> Candidates | None:
    """Decode YOLOv10, YOLO26 and exports with suppression: corners, score, class [, more]."""
    for value in _queries(raw):
        # the angle of rotated boxes is one more column
        if value.shape[2] != 7:
            return Candidates(value[..., :4], _spread_classes(value))
    return None


def v26_obb(raw: Raw) -> Candidates | None:
    """Decode YOLO26-obb: center, sides, score, class, angle."""
    for value in _queries(raw):
        if value.shape[2] == 7:
            return Candidates(around(value[..., :4], value[..., 6:]), _spread_classes(value))
    return None


def _queries(raw: Raw) -> Iterator[np.ndarray]:
    """Yield outputs (n, boxes, 6 or more) with a score and an integer class."""
    for value in raw.flat():
        if value.shape[1] > MOST_QUERIES or value.shape[2] < 6:
            continue
        kind = value[..., 5]
        if are_shares(value[..., 4]) and (kind == np.round(kind)).all() and (kind >= 0).all():
            yield value


def _spread_classes(value: np.ndarray) -> np.ndarray:
    """Return the score of column 4 at the class of column 5, 0 elsewhere."""
    classes = np.arange(int(value[..., 5].max()) + 1)
    return np.asarray(value[..., 4:5] * (value[..., 5:6] == classes))


def v7_nms(raw: Raw) -> Candidates | None:
    """Decode YOLOv7 with suppression in its graph: rows of sample, corners, class, score."""
    if len(raw.outputs) != 1:
        return None
    rows = next(iter(raw.outputs.values()))
    if rows.ndim != 2 or rows.shape[1] != 7:
        return None
    samples, classes = rows[:, 0], rows[:, 5]
    whole = np.concatenate([samples, classes])
    if not are_shares(rows[:, 6]) or (whole != np.round(whole)).any() or (whole < 0).any():
        return None
    scores = rows[:, 6:] * (classes[:, None] == np.arange(int(classes.max()) + 1))
    # a row belongs to one sample; in the others its score is 0
    own = samples == np.arange(raw.samples)[:, None]
    corners = np.broadcast_to(rows[:, 1:5], (raw.samples, len(rows), 4))
    return Candidates(corners, own[..., None] * scores)
