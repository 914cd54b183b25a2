"""Decoders of raw detector outputs, by name, and the recognition of a head from its outputs.

A head is a row of `HEADS`. Its function returns the candidates of all positions, or None if the
outputs have another layout; what follows (least score, suppression) is common to all. Layouts of
equal shape are told apart by their values: probabilities, pixels, integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError, unknown
from onnxprune.metrics.base import Labels, Outputs
from onnxprune.metrics.boxes import COLUMNS, suppress
from onnxprune.metrics.heads import others, yolo
from onnxprune.metrics.heads.arrays import Candidates, Raw

# as detectors are evaluated: all boxes that may count, at most 300 per image after suppression
LEAST_SCORE = 0.001
MOST_CANDIDATES = 1000  # before suppression: as many of the best scores
MOST_BOXES = 300
# COCO's category ids, which detectors with 90 or 91 outputs have, skip these
_COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


@dataclass(frozen=True)
class Head:
    """A row: a layout of raw outputs.

    Attributes
    ----------
    name
        Name for `--decoder`.
    layout
        Shapes of the outputs: n images, k cells or queries, c classes.
    decode
        Candidates, or None if the outputs have another layout.
    overlap
        IoU above which a box of the same class is suppressed; None if the head needs none.
    also
        Other names of detectors with this head.
    """

    name: str
    layout: str
    decode: Callable[[Raw], Candidates | None]
    overlap: float | None = 0.7
    also: tuple[str, ...] = ()


HEADS: tuple[Head, ...] = (
    Head(
        "yolov10",
        "(n, boxes, 6): corners, score, class; more columns for masks or keypoints",
        yolo.v10,
        None,
        ("yolo26", "yolo26-seg", "yolo26-pose"),
    ),
    Head("yolo26-obb", "(n, boxes, 7): box, score, class, angle", yolo.v26_obb, None),
    Head("yolov7-nms", "(boxes, 7): image, corners, class, score", yolo.v7_nms, None),
    Head(
        "yolov8",
        "(n, 4 + c, k)",
        yolo.v8,
        also=("yolov9", "yolo11", "yolo12", "yolov9t", "yolov11", "yolov12"),
    ),
    Head(
        "yolov8-seg",
        "(n, 4 + c + 32, k) and (n, 32, h/4, w/4)",
        yolo.v8_seg,
        also=("yolo11-seg", "yolo12-seg"),
    ),
    Head("yolov8-pose", "(n, 4 + c + 3 p, k)", yolo.v8_pose, also=("yolo11-pose",)),
    Head("yolov8-obb", "(n, 4 + c + 1, k)", yolo.v8_obb, also=("yolo11-obb",)),
    Head("yolov8-maps", "3 of (n, 64 + c, h, w)", yolo.v8_maps, also=("yolo11-maps",)),
    Head("yolov5", "(n, 3 k, 5 + c)", yolo.v5, 0.6, ("yolov3", "yolov7", "yolov5-seg")),
    Head("yolov5-maps", "3 of (n, 3 (5 + c), h, w) or (n, 3, h, w, 5 + c)", yolo.v5_maps, 0.6),
    Head("yolov7-maps", "as yolov5-maps, with other anchors", yolo.v7_maps, 0.65),
    Head("yolov6", "(n, k, 5 + c), objectness 1", yolo.v6, 0.65),
    Head("yolox", "(n, k, 5 + c), or 3 of (n, 5 + c, h, w)", yolo.yolox, 0.65),
    Head(
        "nanodet",
        "(n, k, c + 32), or maps (n, c + 32, h, w)",
        others.nanodet,
        0.6,
        ("nanodet-plus",),
    ),
    Head(
        "rtdetr",
        "(n, k, c) and (n, k, 4), or (n, k, 4 + c): boxes as fractions",
        others.rtdetr,
        None,
        ("dfine", "d-fine", "deim", "rf-detr"),
    ),
    Head("detr", "(n, 100, c + 1) and (n, 100, 4)", others.detr, None),
    Head("ssd", "(n, k, 1 + c) and (n, k, 4)", others.ssd, 0.45, ("ssdlite", "ultraface")),
    Head("retinanet", "(n, 9 k, c) and (n, 9 k, 4), or maps", others.retinanet, 0.5),
    Head("fcos", "(n, k, c), (n, k, 4) and (n, k, 1), or maps", others.fcos, 0.6),
    Head("centernet", "(n, c, h/4, w/4) and 2 of (n, 2, h/4, w/4)", others.centernet, None),
)


def decoder_names() -> list[str]:
    """Return all names, other names of a head included."""
    return [name for head in HEADS for name in (head.name, *head.also)]


def find_head(name: str) -> Head:
    """Return the head of a name; UsageError with the nearest name if there is none."""
    for head in HEADS:
        if name == head.name or name in head.also:
            return head
    raise unknown("decoder", name, decoder_names())


def recognize(outputs: Outputs, labels: Labels) -> list[Head]:
    """Return the heads whose layout the outputs have; several if shapes and values leave doubt."""
    raw = _read(outputs, labels)
    if raw is None:
        return []
    fitting = []
    for head in HEADS:
        candidates = head.decode(raw)
        if candidates is not None:
            fitting.append((head, candidates.scores.shape[2]))
    if len(fitting) > 1:
        # equal shapes of two heads mean different numbers of classes; those of COCO are usual
        usual = [(head, count) for head, count in fitting if count in (80, 90, 91)]
        fitting = usual or fitting
    return [head for head, _ in fitting]


def decode_head(head: Head, outputs: Outputs, labels: Labels) -> list[np.ndarray]:
    """Return the detections of each sample, float64 (boxes, 6).

    Raises
    ------
    DataError
        The size of the input is not known, or the outputs have another layout than the head.
    """
    raw = _read(outputs, labels)
    if raw is None:
        raise DataError(
            "data-labels",
            f"decoder {head.name} needs the size of the model's input; the model has no single "
            "image input, so give labels 'size' (n, 2), height and width",
        )
    candidates = head.decode(raw)
    if candidates is None:
        raise DataError(
            "decoder-shape",
            f"outputs {describe_outputs(outputs)} of an input of {raw.size[0]}x{raw.size[1]} do "
            f"not have the layout of {head.name}: {head.layout}",
        )
    corners, scores = candidates
    scores = _drop_gaps(scores)
    height, width = raw.size
    scale = np.array([width, height, width, height], np.float64)
    detections = []
    for boxes, values in zip(corners, scores, strict=True):
        rows = _pick(np.asarray(boxes, np.float64) / scale, np.asarray(values, np.float64))
        if head.overlap is not None:
            rows = suppress(rows, head.overlap, MOST_BOXES)
        detections.append(rows[:MOST_BOXES])
    return detections


def describe_outputs(outputs: Outputs) -> str:
    """Return the shapes of the outputs by name, such as "output0 1x84x8400"."""
    return ", ".join(f"{n} {'x'.join(map(str, np.shape(v)))}" for n, v in outputs.items())


def _read(outputs: Outputs, labels: Labels) -> Raw | None:
    """Return the outputs as float32 arrays with the size of the input; None if it is unknown."""
    sizes: Sequence[Sequence[int]] = np.asarray(labels.get("size", ())).reshape(-1, 2).tolist()
    # a batch is of one size, because it is one array
    if not sizes:
        return None
    arrays: Mapping[str, np.ndarray] = {
        name: np.asarray(value, np.float32)
        for name, value in outputs.items()
        if np.asarray(value).dtype.kind in "fiu" and np.size(value)
    }
    height, width = (int(v) for v in sizes[0])
    return Raw(arrays, (height, width), len(sizes))


def _pick(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return rows x1, y1, x2, y2, score, class of the best scores of all classes, (rows, 6)."""
    places, classes = np.nonzero(scores > LEAST_SCORE)
    values = scores[places, classes]
    if len(values) > MOST_CANDIDATES:
        # the least of the best scores, without sorting all
        limit = np.partition(values, -MOST_CANDIDATES)[-MOST_CANDIDATES]
        places, classes = places[values >= limit], classes[values >= limit]
        values = values[values >= limit]
    best = np.argsort(-values, kind="stable")[:MOST_CANDIDATES]
    rows = np.concatenate([boxes[places], values[:, None], classes[:, None]], 1)[best]
    return rows.reshape(-1, COLUMNS)


def _drop_gaps(scores: np.ndarray) -> np.ndarray:
    """Return scores of COCO's 80 classes if there is one per category id of COCO."""
    if scores.shape[2] not in (90, 91):
        return scores
    # with 91 outputs, output 0 is unused or the background
    first = scores.shape[2] - 90
    ids = [i for i in range(1, 91) if i not in _COCO_GAPS]
    return scores[..., [i - 1 + first for i in ids]]


__all__ = [
    "HEADS",
    "Head",
    "UsageError",
    "decode_head",
    "describe_outputs",
    "find_head",
    "recognize",
]
