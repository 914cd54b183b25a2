"""Detections from the outputs of a model: by a decoder, or by what the outputs look like.

A detection is a row x1, y1, x2, y2, score, class with corners as fractions of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.metrics.base import Decoder, Labels, MetricOptions, Outputs, find_function
from onnxprune.metrics.boxes import COLUMNS
from onnxprune.metrics.heads import decode_head, describe_outputs, find_head, recognize

# names that exporters give to the outputs of their own non-maximum suppression
_SCORES = ("scores", "detection_scores", "det_scores", "score")
_CLASSES = ("classes", "labels", "detection_classes", "det_classes", "class_ids")
_CORNERS_XY = ("boxes", "det_boxes", "bboxes", "dets")
_CORNERS_YX = ("detection_boxes",)
_COUNTS = ("num_detections", "num_dets", "num_boxes")
# coordinates above this are pixels; boxes may exceed the image, but not by its size
LARGEST_FRACTION = 2


def detections_of(outputs: Outputs, labels: Labels, options: MetricOptions) -> list[np.ndarray]:
    """Return the detections of each sample, by the decoder of the options or from the outputs.

    Classes are counted from `options.class_offset`.

    Raises
    ------
    DataError
        The decoder returns something else than float (boxes, 6) per sample.
    UsageError
        There is no decoder of that name, or none is given and the outputs are not detections of a
        known kind.
    """
    decode = find_decoder(options.decoder)
    detections = [np.asarray(d, np.float64) for d in decode(outputs, labels)]
    size = len(next(iter(outputs.values())))
    # rows of other outputs may be boxes of all samples
    if _is_users(options.decoder) and len(detections) != size:
        raise DataError(
            "decoder-shape",
            f"the decoder returned detections of {len(detections)} samples for a batch of {size}",
        )
    for rows in detections:
        if rows.ndim != 2 or rows.shape[1] != COLUMNS:
            raise DataError(
                "decoder-shape",
                f"the decoder returned shape {rows.shape} for a sample; it must give (boxes, 6): "
                "x1, y1, x2, y2, score, class",
            )
    if not options.class_offset:
        return detections
    shift = np.array([0, 0, 0, 0, 0, options.class_offset])
    return [(rows - shift)[rows[:, 5] >= options.class_offset] for rows in detections]


def _is_users(decoder: str | Decoder | None) -> bool:
    """Return whether a decoder is a function of the user's."""
    return decoder is not None and (not isinstance(decoder, str) or ":" in decoder)


def find_decoder(decoder: str | Decoder | None) -> Decoder:
    """Return the function of a decoder: a name of `HEADS`, module:function, or None = any known.

    Raises
    ------
    UsageError
        There is no such name or function.
    """
    if decoder is None:
        return _decode_known
    if not isinstance(decoder, str):
        return decoder
    if ":" not in decoder:
        return partial(decode_head, find_head(decoder))
    function: Decoder = find_function(decoder, "decoder")
    return function


def recognized_head(outputs: Outputs, labels: Labels) -> str | None:
    """Return the name of the head that outputs have, None for boxes after suppression or others.

    Raises
    ------
    UsageError
        Two heads have this layout.
    """
    if _are_native(outputs):
        return None
    heads = recognize(outputs, labels)
    if len(heads) > 1:
        names = " and ".join(head.name for head in heads)
        raise UsageError(
            "decoder-needed",
            f"outputs {describe_outputs(outputs)} may be of {names}, which differ in what their "
            f"outputs do not say; pass --decoder {heads[0].name}, or the other",
        )
    return heads[0].name if heads else None


def _decode_known(outputs: Outputs, labels: Labels) -> list[np.ndarray]:
    """Return the detections of outputs that are boxes, or of a head that they look like."""
    name = recognized_head(outputs, labels)
    if name is None:
        return native(outputs, labels)
    return decode_head(find_head(name), outputs, labels)


def _are_native(outputs: Outputs) -> bool:
    """Return whether outputs are boxes after suppression, in a form that `native` reads."""
    if len(outputs) == 1:
        only = np.asarray(next(iter(outputs.values())))
        return only.ndim == 3 and _are_detections(only)
    names = {n.lower(): n for n in outputs}
    return _find_output(outputs, names, _CLASSES) is not None and any(
        _find_output(outputs, names, known) is not None for known in (_CORNERS_XY, _CORNERS_YX)
    )


def native(outputs: Outputs, labels: Labels) -> list[np.ndarray]:
    """Return the detections of a model that applies non-maximum suppression in its graph.

    Known forms: one output (n, boxes, 6) of corners, score, class; or outputs named boxes, scores
    and classes (labels, detection_*, det_*) with an optional count, batched or of a single image.
    `detection_boxes` has y before x, as TensorFlow exports it. Corners in pixels are divided by
    `labels["size"]`, int (n, 2), height and width of the input.

    Raises
    ------
    UsageError
        The outputs have none of these forms.
    DataError
        Boxes are in pixels and the labels have no size.
    """
    if len(outputs) == 1:
        only = np.asarray(next(iter(outputs.values())))
        if only.ndim == 3 and _are_detections(only):
            return _scale_to_fractions([row[row[:, 4] > 0] for row in only], labels)
    names = {n.lower(): n for n in outputs}
    boxes, flipped = _find_output(outputs, names, _CORNERS_XY), False
    if boxes is None:
        boxes, flipped = _find_output(outputs, names, _CORNERS_YX), True
    scores = _find_output(outputs, names, _SCORES)
    classes = _find_output(outputs, names, _CLASSES)
    if boxes is None or classes is None or (scores is None and boxes.shape[-1] != 5):
        raise UsageError(
            "decoder-needed",
            f"outputs {describe_outputs(outputs)} are not boxes, scores and classes, nor of a "
            "known head; name a decoder: one that `onnxprune criteria` lists, or module:function "
            "(outputs, labels) -> boxes",
        )
    if scores is None:
        boxes, scores = boxes[..., :4], boxes[..., 4]
    if boxes.ndim == 2:
        boxes, scores, classes = boxes[None], scores[None], classes[None]
    corners = boxes[..., [1, 0, 3, 2]] if flipped else boxes
    counts = _find_output(outputs, names, _COUNTS)
    lengths = [boxes.shape[1]] * len(boxes)
    if counts is not None:
        lengths = [int(c) for c in counts.reshape(-1)]
    detections = [
        np.concatenate([c, s.reshape(-1, 1), k.reshape(-1, 1)], 1)[:n]
        for c, s, k, n in zip(corners, scores, classes, lengths, strict=False)
    ]
    # exports pad to a fixed number of rows, with a score of 0
    return _scale_to_fractions([rows[rows[:, 4] > 0] for rows in detections], labels)


def _are_detections(rows: np.ndarray) -> bool:
    """Return True if (n, boxes, 6) may be corners, score and class.

    Scores are then from 0 to 1 and classes are integers.
    """
    if rows.shape[2] != COLUMNS:
        return False
    score, kind = rows[..., 4], rows[..., 5]
    return bool(((score >= 0) & (score <= 1)).all() and (kind == np.round(kind)).all())


def _find_output(
    outputs: Outputs, names: dict[str, str], known: Sequence[str]
) -> np.ndarray | None:
    """Return the output with the first of the known names; `names` is lower case -> name."""
    for name in known:
        if name in names:
            return np.asarray(outputs[names[name]], np.float64)
    return None


def _scale_to_fractions(detections: list[np.ndarray], labels: Labels) -> list[np.ndarray]:
    """Return detections with corners as fractions; corners in pixels are divided by the size."""
    detections = [np.asarray(d, np.float64) for d in detections]
    if all(not len(d) or d[:, :4].max() <= LARGEST_FRACTION for d in detections):
        return detections
    if "size" not in labels:
        raise DataError(
            "data-labels",
            "the model's boxes are in pixels and the data lack the size of the input; give labels "
            "'size' (n, 2), height and width",
        )
    sizes = np.asarray(labels["size"], np.float64).reshape(-1, 2)
    return [
        # sizes are height and width, corners x and y
        np.concatenate([rows[:, :4] / size[[1, 0, 1, 0]], rows[:, 4:]], 1)
        for rows, size in zip(detections, sizes, strict=False)
    ]
