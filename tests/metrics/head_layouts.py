"""Encoders of known boxes into the raw outputs of every head, the inverse of its decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

SIZE = (320, 416)  # height and width, unequal so that mixed axes are seen
CLASSES = 80
SAMPLES = 2
STRIDES = (8, 16, 32)
PYRAMID = (8, 16, 32, 64, 128)
# per sample: x1, y1, x2, y2 in pixels, class
TRUTH = (
    np.array([[24, 40, 104, 140, 3], [200, 60, 392, 300, 79], [130, 150, 170, 190, 0]], float),
    np.array([[10, 20, 300, 310, 17]], float),
)
HIGH, LOW = 0.9, 1e-4  # scores of boxes and of other positions
LOGIT = 9.0

Outputs = dict[str, np.ndarray]


def places(strides=STRIDES, anchors: int = 1, shift: float = 0.5):
    """Points (k, 2) in pixels and strides (k, 1)."""
    points, scales = [], []
    for s in strides:
        h, w = -(-SIZE[0] // s), -(-SIZE[1] // s)
        y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
        point = np.stack([x, y], -1).reshape(-1, 1, 2).repeat(anchors, 1).reshape(-1, 2)
        points.append((point + shift) * s)
        scales.append(np.full((len(point), 1), s))
    return np.concatenate(points), np.concatenate(scales)


def centers(boxes: np.ndarray) -> np.ndarray:
    """Corners as center and sides."""
    return np.concatenate(
        [(boxes[..., :2] + boxes[..., 2:4]) / 2, boxes[..., 2:4] - boxes[..., :2]], -1
    )


def dense(points: np.ndarray, step: int = 1):
    """Boxes (n, k, 4) in pixels and classes (n, k), -1 where there is none.

    A box is at the point next to its center; other points have a small box of their own.
    """
    n, k = SAMPLES, len(points)
    boxes = np.concatenate([points - 9, points + 9], -1)[None].repeat(n, 0)
    classes = np.full((n, k), -1)
    for i, truth in enumerate(TRUTH):
        for row in truth:
            gap = np.abs(points - (row[:2] + row[2:4]) / 2).sum(1)
            at = int(gap.argmin()) // step * step
            boxes[i, at], classes[i, at] = row[:4], int(row[4])
    return boxes, classes


def one_hot(classes: np.ndarray, high: float = HIGH, low: float = LOW, count: int = CLASSES):
    """Scores (n, k, count), slightly different everywhere as those of a network are."""
    rng = np.random.default_rng(0)
    scores = low * rng.uniform(0.5, 1, (*classes.shape, count))
    at = np.nonzero(classes >= 0)
    scores[(*at, classes[at])] = high
    return scores


def logits(classes: np.ndarray, count: int = CLASSES) -> np.ndarray:
    scores = one_hot(classes, LOGIT, 0, count)
    rng = np.random.default_rng(1)
    return np.where(scores > 0, scores, -LOGIT - rng.uniform(0, 1, scores.shape))


def split(values: np.ndarray, strides=STRIDES, anchors: int = 1) -> list[np.ndarray]:
    """Maps (n, anchors * values, h, w) per stride of (n, k, values)."""
    maps, start = [], 0
    for s in strides:
        h, w = -(-SIZE[0] // s), -(-SIZE[1] // s)
        part = values[:, start : start + h * w * anchors]
        start += h * w * anchors
        part = part.reshape(len(values), h, w, anchors, -1).transpose(0, 3, 4, 1, 2)
        maps.append(part.reshape(len(values), -1, h, w))
    return maps


def numbered(name: str, maps: list[np.ndarray]) -> Outputs:
    return {f"{name}{k}": m for k, m in enumerate(maps)}


def bins(distances: np.ndarray, count: int) -> np.ndarray:
    """Logits whose expected bin is the distance."""
    low = np.clip(np.floor(distances), 0, count - 2)
    share = np.clip(distances - low, 1e-6, 1 - 1e-6)[..., None]
    at = np.arange(count)
    weight = np.where(at == low[..., None], 1 - share, 0) + np.where(
        at == low[..., None] + 1, share, 1e-9
    )
    return np.log(weight + 1e-9).reshape(*distances.shape[:-1], -1)


def sides_of(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([points - boxes[..., :2], boxes[..., 2:4] - points], -1)


def inverse_sigmoid(values: np.ndarray) -> np.ndarray:
    values = np.clip(values, 1e-6, 1 - 1e-6)
    return np.log(values / (1 - values))


def yolo(anchors: int, objectness: float | None, first: bool = False, extra=None) -> Outputs:
    """Boxes in pixels, with or without an objectness, and further columns."""
    boxes, classes = dense(places(anchors=anchors)[0], anchors)
    columns = [centers(boxes)]
    if objectness is not None:
        here = np.where(classes >= 0, 0.95, 0.01) if objectness < 1 else np.ones(classes.shape)
        columns.append(here[..., None])
    columns.append(one_hot(classes))
    if extra is not None:
        columns.append(extra(classes.shape))
    value = np.concatenate(columns, -1)
    return {"output0": value.transpose(0, 2, 1) if first else value}


def noise(width: int) -> Callable:
    return lambda shape: np.random.default_rng(2).normal(0, 1, (*shape, width))


def prototypes() -> Outputs:
    return {"output1": np.zeros((SAMPLES, 32, SIZE[0] // 4, SIZE[1] // 4)) + 0.3}


def keypoints(shape) -> np.ndarray:
    rng = np.random.default_rng(3)
    points = rng.uniform(0, 400, (*shape, 17, 3))
    points[..., 2] = rng.random((*shape, 17))
    return points.reshape(*shape, -1)


def pose() -> Outputs:
    boxes, classes = dense(places()[0])
    classes = np.minimum(classes, 0)
    value = np.concatenate(
        [centers(boxes), one_hot(classes, count=1), keypoints(classes.shape)], -1
    )
    return {"output0": value.transpose(0, 2, 1)}


def anchor_maps(anchors, rank5: bool) -> Outputs:
    points, scale = places(anchors=3)
    boxes, classes = coarse(points, STRIDES, 3)
    sizes = np.concatenate(
        [
            np.tile(a, (len(m[0, 0].ravel()), 1))
            for a, m in zip(anchors, split(boxes, STRIDES, 3), strict=True)
        ]
    )
    box = centers(boxes)
    xy = inverse_sigmoid(((box[..., :2] - points) / scale + 1) / 2)
    wh = inverse_sigmoid(np.sqrt(box[..., 2:] / sizes) / 2)
    here = np.where(classes >= 0, LOGIT, -LOGIT)[..., None]
    value = np.concatenate([xy, wh, here, logits(classes)], -1)
    maps = split(value, STRIDES, 3)
    if rank5:
        maps = [m.reshape(len(m), 3, -1, *m.shape[2:]).transpose(0, 1, 3, 4, 2) for m in maps]
    return numbered("onnx::Sigmoid_", maps)


def yolox(raw: bool, maps: bool = False) -> Outputs:
    points, scale = places()
    boxes, classes = dense(points)
    box = centers(boxes)
    if raw:
        corner = points - scale / 2
        box = np.concatenate([(box[..., :2] - corner) / scale, np.log(box[..., 2:] / scale)], -1)
    here = np.where(classes >= 0, 0.95, 0.01)[..., None]
    value = np.concatenate([box, here, one_hot(classes)], -1)
    return numbered("output", split(value)) if maps else {"output": value}


def dfl_maps() -> Outputs:
    points, scale = places((8, 16, 32))
    boxes, classes = coarse(points)
    distance = bins(sides_of(points, boxes) / scale, 16)
    return numbered("output", split(np.concatenate([distance, logits(classes)], -1)))


def coarse(points: np.ndarray, strides=STRIDES, anchors: int = 1):
    """As dense, but known boxes are at stride 32, whose anchors and distances reach far enough."""
    counts = [-(-SIZE[0] // s) * -(-SIZE[1] // s) * anchors for s in strides]
    start = sum(counts[: strides.index(32)])
    part = slice(start, start + counts[strides.index(32)])
    boxes = np.concatenate([points - 9, points + 9], -1)[None].repeat(SAMPLES, 0)
    classes = np.full(boxes.shape[:2], -1)
    boxes[:, part], classes[:, part] = dense(points[part], anchors)
    return boxes, classes


def nanodet(strides, shift: float, form: str) -> Outputs:
    points, scale = places(strides, shift=shift)
    boxes, classes = coarse(points, strides)
    distance = bins(np.clip(sides_of(points, boxes) / scale, 0, 7), 8)
    scores = logits(classes) if form == "maps" else one_hot(classes)
    if form == "pairs":
        cls, dis = split(scores, strides), split(distance, strides)
        flat = lambda m: m.reshape(*m.shape[:2], -1).transpose(0, 2, 1)  # noqa: E731
        return {f"cls_pred_stride_{s}": flat(m) for s, m in zip(strides, cls, strict=True)} | {
            f"dis_pred_stride_{s}": flat(m) for s, m in zip(strides, dis, strict=True)
        }
    value = np.concatenate([scores, distance], -1)
    return numbered("out", split(value, strides)) if form == "maps" else {"output": value}


def queries(count: int, width: int) -> np.ndarray:
    """Rows (n, count, width), zero but for boxes in the last rows."""
    return np.zeros((SAMPLES, count, width))


def end_to_end(width: int, rotated: bool = False) -> Outputs:
    value = queries(300, width)
    rng = np.random.default_rng(4)
    value[..., :4] = [10, 10, 20, 20]
    value[..., 4] = LOW
    value[..., 6:] = rng.normal(0, 2, value[..., 6:].shape)
    for i, truth in enumerate(TRUTH):
        rows = value[i, -len(truth) :]
        rows[:, :4] = centers(truth) if rotated else truth[:, :4]
        rows[:, 4], rows[:, 5] = HIGH, truth[:, 4]
        if rotated:
            # a quarter turn with exchanged sides is the same box
            rows[:, :4], rows[:, 6] = rows[:, [0, 1, 3, 2]], np.pi / 2
    return {"output0": value}


def nms_rows() -> Outputs:
    rows = [[i, *row[:4], row[4], HIGH] for i, truth in enumerate(TRUTH) for row in truth]
    return {"output": np.array(rows)}


def obb() -> Outputs:
    boxes, classes = dense(places()[0])
    box = centers(boxes)[..., [0, 1, 3, 2]]
    angle = np.random.default_rng(5).uniform(-0.7, 2.3, (*classes.shape, 1))
    # known boxes are turned by a quarter
    angle[classes >= 0] = np.pi / 2
    value = np.concatenate([box, one_hot(classes), angle], -1)
    return {"output0": value.transpose(0, 2, 1)}


def detr_like(count: int, one: bool, background: bool = False) -> Outputs:
    rng = np.random.default_rng(6)
    boxes = rng.uniform(0.2, 0.4, (SAMPLES, count, 4))
    classes = np.full((SAMPLES, count), -1)
    for i, truth in enumerate(TRUTH):
        boxes[i, : len(truth)] = centers(truth) / np.array([*SIZE[::-1], *SIZE[::-1]])
        classes[i, : len(truth)] = truth[:, 4]
    if one:
        return {"output0": np.concatenate([boxes, one_hot(classes)], -1)}
    scores = logits(classes)
    if background:
        last = np.where(classes[..., None] < 0, LOGIT, -LOGIT)
        scores = np.concatenate([scores, last], -1)
    return {"pred_logits": scores, "pred_boxes": boxes}


def with_background(classes: np.ndarray) -> np.ndarray:
    """Softmax probabilities with the background first."""
    scores = one_hot(classes, 0.95, 1e-5)
    return np.concatenate([1 - scores.sum(-1, keepdims=True), scores], -1)


def ssd_corners() -> Outputs:
    boxes, classes = dense(places((16, 32), 3)[0])
    return {
        "scores": with_background(classes),
        "boxes": boxes / np.array([*SIZE[::-1], *SIZE[::-1]]),
    }


def ssd_offsets(defaults: np.ndarray) -> Outputs:
    """Offsets from default boxes, given as fractions."""
    scale = np.array([*SIZE[::-1], *SIZE[::-1]])
    boxes, classes = dense(defaults[:, :2] * scale[:2])
    box = centers(boxes) / scale
    offset = (box[..., :2] - defaults[:, :2]) / defaults[:, 2:] / 0.1
    zoom = np.log(box[..., 2:] / defaults[:, 2:]) / 0.2
    background = np.where(classes[..., None] < 0, LOGIT, -LOGIT)
    return {
        "cls_logits": np.concatenate([background, logits(classes)], -1),
        "bbox_regression": np.concatenate([offset, zoom], -1),
    }


def retinanet(maps: bool, classes_count: int = CLASSES) -> Outputs:
    points, scale = places(PYRAMID, 9, 0)
    boxes, classes = dense(points, 9)
    sizes = []
    for ratio in (0.5, 1, 2):
        for octave in range(3):
            side = 4 * 2 ** (octave / 3)
            sizes.append([side / ratio**0.5, side * ratio**0.5])
    anchors = np.tile(sizes, (len(points) // 9, 1)) * scale
    box = centers(boxes)
    delta = np.concatenate([(box[..., :2] - points) / anchors, np.log(box[..., 2:] / anchors)], -1)
    if classes_count == 91:
        classes = np.where(classes < 0, -1, np.array(COCO_IDS)[classes])
    scores = logits(classes, classes_count)
    if maps:
        return numbered("cls_", split(scores, PYRAMID, 9)) | numbered(
            "box_", split(delta, PYRAMID, 9)
        )
    return {"cls_logits": scores, "bbox_regression": delta}


COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def fcos(maps: bool) -> Outputs:
    points, scale = places(PYRAMID, shift=0.5 if maps else 0)
    boxes, classes = dense(points)
    distance = sides_of(points, boxes)
    center = np.where(classes >= 0, LOGIT, 0)[..., None]
    parts = {"cls_logits": logits(classes), "bbox_ctrness": center}
    parts["bbox_regression"] = distance if maps else distance / scale
    if not maps:
        return parts
    return {f"{n}{k}": m for n, v in parts.items() for k, m in enumerate(split(v, PYRAMID))}


def centernet(names: tuple[str, str, str]) -> Outputs:
    points, _ = places((4,), shift=0)
    boxes, classes = dense(points)
    box = centers(boxes)
    heat, wh = logits(classes), box[..., 2:] / 4
    offset = (box[..., :2] - points) / 4
    return {n: split(v, (4,))[0] for n, v in zip(names, (heat, wh, offset), strict=True)}


def layouts() -> Mapping[str, tuple[str, Callable[[], Outputs]]]:
    """Layout -> (name of its head, encoder)."""
    from onnxprune.metrics.heads.others import DEFAULT_BOXES
    from onnxprune.metrics.heads.yolo import ANCHORS_V5, ANCHORS_V7

    return {
        "yolov5": ("yolov5", lambda: yolo(3, 0.5)),
        "yolov5 with its maps": ("yolov5", lambda: yolo(3, 0.5) | anchor_maps(ANCHORS_V5, True)),
        "yolov5-seg": ("yolov5", lambda: yolo(3, 0.5, extra=noise(32)) | prototypes()),
        "yolov5 maps": ("yolov5-maps", lambda: anchor_maps(ANCHORS_V5, False)),
        "yolov5 maps of rank 5": ("yolov5-maps", lambda: anchor_maps(ANCHORS_V5, True)),
        "yolov7 maps": ("yolov7-maps", lambda: anchor_maps(ANCHORS_V7, False)),
        "yolov7 nms": ("yolov7-nms", nms_rows),
        "yolov6": ("yolov6", lambda: yolo(1, 1)),
        "yolov8": ("yolov8", lambda: yolo(1, None, first=True)),
        "yolov8-seg": (
            "yolov8-seg",
            lambda: yolo(1, None, first=True, extra=noise(32)) | prototypes(),
        ),
        "yolov8-pose": ("yolov8-pose", pose),
        "yolov8-obb": ("yolov8-obb", obb),
        "yolov8 maps": ("yolov8-maps", dfl_maps),
        "yolov10": ("yolov10", lambda: end_to_end(6)),
        "yolo26-seg": ("yolov10", lambda: end_to_end(38) | prototypes()),
        "yolo26-pose": ("yolov10", lambda: end_to_end(57)),
        "yolo26-obb": ("yolo26-obb", lambda: end_to_end(7, rotated=True)),
        "yolox raw": ("yolox", lambda: yolox(True)),
        "yolox": ("yolox", lambda: yolox(False)),
        "yolox maps": ("yolox", lambda: yolox(True, maps=True)),
        "nanodet": ("nanodet", lambda: nanodet(STRIDES, 0.5, "flat")),
        "nanodet-plus": ("nanodet", lambda: nanodet((8, 16, 32, 64), 0, "flat")),
        "nanodet pairs": ("nanodet", lambda: nanodet(STRIDES, 0.5, "pairs")),
        "nanodet maps": ("nanodet", lambda: nanodet(STRIDES, 0.5, "maps")),
        "rtdetr": ("rtdetr", lambda: detr_like(300, False)),
        "rtdetr one output": ("rtdetr", lambda: detr_like(300, True)),
        "detr": ("detr", lambda: detr_like(100, False, background=True)),
        "ssd corners": ("ssd", ssd_corners),
        "ssd300": ("ssd", lambda: ssd_offsets(DEFAULT_BOXES[8732]())),
        "ssdlite320": ("ssd", lambda: ssd_offsets(DEFAULT_BOXES[3234]())),
        "retinanet": ("retinanet", lambda: retinanet(False)),
        "retinanet of coco ids": ("retinanet", lambda: retinanet(False, 91)),
        "retinanet maps": ("retinanet", lambda: retinanet(True)),
        "fcos": ("fcos", lambda: fcos(False)),
        "fcos maps": ("fcos", lambda: fcos(True)),
        "centernet": ("centernet", lambda: centernet(("hm", "wh", "reg"))),
        "centernet unnamed": ("centernet", lambda: centernet(("508", "511", "514"))),
    }
