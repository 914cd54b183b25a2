"""Decoders of two public detectors, for `--decoder benchmarks.decoders:nanodet` and benchmarks.

A decoder returns a float array (boxes, 6) per sample: x1, y1, x2, y2 as fractions of the image,
score, class; at most MOST boxes remain after suppression within each class. Thresholds are those of
the figures that the models' authors published.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.metrics.boxes import suppress

MOST = 100  # boxes per image

# NanoDet-m (RangiLyu/nanodet): anchor-free; a map has 80 class logits, then for each of four sides
# 8 logits of a distribution over distances of 0 to 7 strides
NANODET_SIDE = 320
NANODET_CLASSES = 80
NANODET_BINS = 8
NANODET_SCORE, NANODET_OVERLAP = 0.05, 0.6

# Yolo-FastestV2 (dog-qiuqiu/Yolo-FastestV2): three anchors per position share one set of class
# probabilities; sigmoid and softmax are in the graph. Anchor widths and heights in pixels, for
# stride 16 and stride 32 (its data/coco.data)
YOLO_SIDE = 352
YOLO_ANCHORS = (
    ((12.64, 19.39), (37.88, 51.48), (55.71, 138.31)),
    ((126.91, 78.23), (131.57, 214.55), (279.92, 258.87)),
)
YOLO_SCORE, YOLO_OVERLAP = 0.01, 0.4


def nanodet(
    outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Decode outputs (n, 112, h, w) of any strides of a 320 x 320 input.

    A box extends from the center of its cell by the expected distance to each side.
    """
    maps = [np.asarray(v) for v in outputs.values()]
    boxes = []
    for sample in range(len(maps[0])):
        cells = np.concatenate([_nanodet_cells(m[sample]) for m in maps])
        boxes.append(_best(cells, NANODET_SCORE, NANODET_OVERLAP))
    return boxes


def yolofastestv2(
    outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Decode outputs (n, 95, h, w) at strides 16 and 32 of a 352 x 352 input.

    Channels are 3 x (x, y, w, h), 3 objectness values and 80 class probabilities.
    """
    maps = sorted((np.asarray(v) for v in outputs.values()), key=lambda m: -m.shape[2])
    pairs = list(zip(maps, YOLO_ANCHORS, strict=True))
    boxes = []
    for sample in range(len(maps[0])):
        cells = np.concatenate([_yolo_cells(m[sample], anchors) for m, anchors in pairs])
        boxes.append(_best(cells, YOLO_SCORE, YOLO_OVERLAP))
    return boxes


def _nanodet_cells(cells: np.ndarray) -> np.ndarray:
    """Decode one map (112, h, w) to (h * w, 6)."""
    stride, corner, rows = NANODET_SIDE / cells.shape[1], _corners(cells), _rows(cells)
    scores = 1 / (1 + np.exp(-rows[:, :NANODET_CLASSES]))
    bins = rows[:, NANODET_CLASSES:].reshape(len(rows), 4, NANODET_BINS)
    share = np.exp(bins - bins.max(2, keepdims=True))
    distance = (share * np.arange(NANODET_BINS)).sum(2) / share.sum(2) * stride
    center = (corner + 0.5) * stride
    boxes = np.concatenate([center - distance[:, :2], center + distance[:, 2:]], 1) / NANODET_SIDE
    return np.concatenate([boxes, scores.max(1)[:, None], scores.argmax(1)[:, None]], 1)


def _yolo_cells(cells: np.ndarray, anchors: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Decode one map (95, h, w) to (3 * h * w, 6), one anchor after another."""
    stride, corner, rows = YOLO_SIDE / cells.shape[1], _corners(cells), _rows(cells)
    count = len(anchors)
    classes = rows[:, 5 * count :]
    probability, kind = classes.max(1), classes.argmax(1)
    boxes = []
    for k, anchor in enumerate(anchors):
        raw = rows[:, 4 * k : 4 * k + 4]
        center = (raw[:, :2] * 2 - 0.5 + corner) * stride / YOLO_SIDE
        half = (raw[:, 2:] * 2) ** 2 * np.array(anchor) / YOLO_SIDE / 2
        score = rows[:, 4 * count + k] * probability
        columns = [center - half, center + half, score[:, None], kind[:, None]]
        boxes.append(np.concatenate(columns, 1))
    return np.concatenate(boxes)


def _rows(cells: np.ndarray) -> np.ndarray:
    """Reshape (c, h, w) to (h * w, c)."""
    return np.ascontiguousarray(cells.reshape(len(cells), -1).T)


def _corners(cells: np.ndarray) -> np.ndarray:
    """Return column and row of each cell, (h * w, 2)."""
    rows, columns = np.indices(cells.shape[1:])
    return np.stack([columns.ravel(), rows.ravel()], 1)


def _best(rows: np.ndarray, score: float, limit: float) -> np.ndarray:
    """Suppress overlapping boxes among those above a score."""
    return suppress(rows[rows[:, 4] > score], limit, MOST)
