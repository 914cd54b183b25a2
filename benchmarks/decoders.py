"""Boxes from the raw heads of two public detectors, for benchmarks; name them as `benchmarks.decoders:nanodet` and the like.

Both give for each sample float (boxes, 6): x1, y1, x2, y2 as fractions of the image, score, class; at most 100 boxes after suppression within each class.
Thresholds are those under which the models' publishers give figures.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.metrics.boxes import suppress

MOST = 100

# NanoDet-m (RangiLyu/nanodet): anchor-free; a map holds 80 class logits, then for each of four sides 8 logits of a distribution over 0 .. 7 strides
NANODET_SIDE = 320
NANODET_CLASSES = 80
NANODET_BINS = 8
NANODET_SCORE, NANODET_OVERLAP = 0.05, 0.6

# Yolo-FastestV2 (dog-qiuqiu/Yolo-FastestV2): three anchors a position share one set of class probabilities; sigmoid and softmax are in the graph.
# Anchor widths and heights in pixels, for stride 16 and stride 32 (its data/coco.data)
YOLO_SIDE = 352
YOLO_ANCHORS = (
    ((12.64, 19.39), (37.88, 51.48), (55.71, 138.31)),
    ((126.91, 78.23), (131.57, 214.55), (279.92, 258.87)),
)
YOLO_SCORE, YOLO_OVERLAP = 0.01, 0.4


def nanodet(
    outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Outputs (n, 112, h, w) of any strides of a 320 x 320 input. A box is the cell's center less and plus the expected distances."""
    maps = [np.asarray(v) for v in outputs.values()]
    return [
        _best(
            np.concatenate([_nanodet_cells(m[row]) for m in maps]), NANODET_SCORE, NANODET_OVERLAP
        )
        for row in range(len(maps[0]))
    ]


def yolofastestv2(
    outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Outputs (n, 95, h, w) at strides 16 and 32 of a 352 x 352 input: 3 x (x, y, w, h), 3 objectness, 80 class probabilities."""
    maps = sorted((np.asarray(v) for v in outputs.values()), key=lambda m: -m.shape[2])
    pairs = list(zip(maps, YOLO_ANCHORS, strict=False))
    return [
        _best(np.concatenate([_yolo_cells(m[row], a) for m, a in pairs]), YOLO_SCORE, YOLO_OVERLAP)
        for row in range(len(maps[0]))
    ]


def _nanodet_cells(cells: np.ndarray) -> np.ndarray:
    """One map (112, h, w) -> (h * w, 6)."""
    stride, corner, rows = NANODET_SIDE / cells.shape[1], _corners(cells), _rows(cells)
    scores = 1 / (1 + np.exp(-rows[:, :NANODET_CLASSES]))
    bins = rows[:, NANODET_CLASSES:].reshape(len(rows), 4, NANODET_BINS)
    share = np.exp(bins - bins.max(2, keepdims=True))
    distance = (share * np.arange(NANODET_BINS)).sum(2) / share.sum(2) * stride
    center = (corner + 0.5) * stride
    boxes = np.concatenate([center - distance[:, :2], center + distance[:, 2:]], 1) / NANODET_SIDE
    return np.concatenate([boxes, scores.max(1)[:, None], scores.argmax(1)[:, None]], 1)


def _yolo_cells(cells: np.ndarray, anchors: tuple[tuple[float, float], ...]) -> np.ndarray:
    """One map (95, h, w) -> (3 * h * w, 6), anchor by anchor."""
    stride, corner, rows = YOLO_SIDE / cells.shape[1], _corners(cells), _rows(cells)
    count = len(anchors)
    likely, kind = rows[:, 5 * count :].max(1), rows[:, 5 * count :].argmax(1)
    found = []
    for k, anchor in enumerate(anchors):
        raw = rows[:, 4 * k : 4 * k + 4]
        center = (raw[:, :2] * 2 - 0.5 + corner) * stride / YOLO_SIDE
        half = (raw[:, 2:] * 2) ** 2 * np.array(anchor) / YOLO_SIDE / 2
        found.append(
            np.concatenate(
                [
                    center - half,
                    center + half,
                    (rows[:, 4 * count + k] * likely)[:, None],
                    kind[:, None],
                ],
                1,
            )
        )
    return np.concatenate(found)


def _rows(cells: np.ndarray) -> np.ndarray:
    """(c, h, w) -> (h * w, c)."""
    return np.ascontiguousarray(cells.reshape(len(cells), -1).T)


def _corners(cells: np.ndarray) -> np.ndarray:
    """Column and row of each cell: (h * w, 2)."""
    rows, columns = np.indices(cells.shape[1:])
    return np.stack([columns.ravel(), rows.ravel()], 1)


def _best(rows: np.ndarray, score: float, limit: float) -> np.ndarray:
    return suppress(rows[rows[:, 4] > score], limit, MOST)
