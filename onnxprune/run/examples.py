"""Held-out inputs with the predictions of both models, for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from onnxprune.data.dataset import Data, samples_of
from onnxprune.data.input_shapes import spell
from onnxprune.data.label_formats.masks import IGNORED
from onnxprune.data.label_geometry import MASKS
from onnxprune.data.labeled import BOXES, LabeledData
from onnxprune.errors import MissingExtraError, OnnxpruneError
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.metrics.base import MetricOptions
from onnxprune.metrics.decoding import detections_of
from onnxprune.metrics.fidelity import common_boxes
from onnxprune.report.example import Example, Prediction
from onnxprune.run.adapter import metric_options
from onnxprune.run.pictures import (
    encode_mask,
    encode_picture,
    picture_size,
    restore_pixels,
    to_bytes,
)
from onnxprune.run.recipe import Recipe

MOST_EXAMPLES = 8
MOST_CLASSES = 3  # shown per prediction
MOST_BOXES = 20
LEAST_SCORE = 0.25  # of the boxes shown, as of those that fidelity compares
NOT_FINITE = "the outputs of a model are not finite"
LEAST_MASK = 8  # pixels per side: smaller maps of scores are no masks

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Sample:
    """One input: its index in the source, feeds with a batch axis, and labels."""

    index: int
    feeds: Arrays
    row: int
    rows: int
    labels: Arrays


def collect_examples(
    original: Model, pruned: Model, data: Data | LabeledData, recipe: Recipe
) -> tuple[Example, ...]:
    """Return MOST_EXAMPLES evenly spaced inputs with the predictions of both models.

    Evenly spaced and not the best or the worst ones, so that they show the average case. () if a
    model or the data cannot be read one by one: no run fails for a picture.
    """
    try:
        return tuple(_collect(original, pruned, data, recipe))
    # outputs may have any shape and any values
    except (OnnxpruneError, ValueError, TypeError, LookupError, ArithmeticError):
        return ()


def _collect(
    original: Model, pruned: Model, data: Data | LabeledData, recipe: Recipe
) -> Iterator[Example]:
    """Yield the examples."""
    batch = data.inputs.batch or 1
    count = -(-MOST_EXAMPLES // batch) * batch
    places = np.linspace(0, len(data.chosen) - 1, min(count, len(data.chosen))).round()
    data = replace(data, chosen=tuple(data.chosen[int(place)] for place in places))
    sessions = [Session(model, threads=recipe.compute_threads) for model in (original, pruned)]
    for sample in islice(_read_samples(data), MOST_EXAMPLES):
        outputs = []
        for session in sessions:
            results = session.run(sample.feeds)
            # sequences and maps have no picture
            arrays = {n: v for n, v in results.items() if isinstance(v, np.ndarray)}
            outputs.append({name: _pick(value, sample) for name, value in arrays.items()})
        yield _describe(sample, outputs, data, metric_options(recipe))


def _read_samples(data: Data | LabeledData) -> Iterator[_Sample]:
    """Yield the samples one by one; of a model with a fixed batch, each with its whole batch."""
    indices = iter(data.chosen)
    if isinstance(data, LabeledData):
        for batch in data.labeled_batches(1):
            for row in range(batch.count):
                labels = {n: v[row] for n, v in batch.labels.items() if n != BOXES}
                if BOXES in batch.labels:
                    boxes = batch.labels[BOXES]
                    labels[BOXES] = boxes[boxes[:, 0] == row]
                yield _Sample(next(indices), batch.feeds, row, samples_of(batch.feeds), labels)
        return
    for feeds in data.batches(1):
        rows = samples_of(feeds)
        for row in range(rows):
            yield _Sample(next(indices), feeds, row, rows, {})


def _pick(value: np.ndarray, sample: _Sample) -> np.ndarray:
    """Return the part of an output that belongs to a sample, with its batch axis."""
    if sample.rows > 1 and value.ndim and len(value) == sample.rows:
        return value[sample.row : sample.row + 1]
    return value


def _describe(
    sample: _Sample,
    outputs: list[dict[str, np.ndarray]],
    data: Data | LabeledData,
    options: MetricOptions,
) -> Example:
    """Return one input and its predictions."""
    # the first image; without one, the first input, as text
    names = list(data.inputs.items)
    shown = next((name for name in names if data.inputs.image(name)), names[0])
    item = data.inputs.items[shown]
    values = np.asarray(sample.feeds[shown])
    if item.axis is not None:
        values = values.take(sample.row, item.axis)
    example = Example(f"input {sample.index}", input=_spell(shown, values))
    sides: tuple[int, int] | None = None
    is_channels_last = False
    label = sample.labels.get("labels")
    if label is not None and np.size(label) == 1:
        example = replace(example, label=str(np.asarray(label).reshape(-1)[0]))
    axes = data.inputs.image(shown)
    if axes is not None:
        pixels, note = restore_pixels(values, data.inputs, shown)
        sides, is_channels_last = pixels.shape[:2], axes.channels == 3
        # without Pillow, predictions are shown without pictures
        try:
            picture = encode_picture(pixels)
        except MissingExtraError:
            picture = ""
        example = replace(example, picture=picture, size=picture_size(pixels), note=note)
    if is_channels_last:
        # outputs have the layout of the input
        outputs = [{n: _channels_first(v) for n, v in values.items()} for values in outputs]
    example = _predict(example, outputs, options, sides)
    return replace(example, truth=_find_truth(example, sample.labels))


def _find_truth(example: Example, labels: Arrays) -> Prediction:
    """Return the labels of an example in the form of its predictions."""
    if example.kind == "boxes" and BOXES in labels:
        rows = np.asarray(labels[BOXES], np.float64)[:MOST_BOXES]
        low, high = rows[:, 2:4] - rows[:, 4:6] / 2, rows[:, 2:4] + rows[:, 4:6] / 2
        return Prediction(
            boxes=_round(np.column_stack([low, high, np.ones(len(rows)), rows[:, 1]]))
        )
    mask = labels.get(MASKS)
    if example.kind == "mask" and mask is not None and np.ndim(mask) == 2:
        size = (example.size[0], example.size[1])
        scored = mask[mask != IGNORED]
        classes = _list_shares(np.bincount(scored.reshape(-1)), max(scored.size, 1))
        return Prediction(classes, picture=encode_mask(mask, size, IGNORED))
    return Prediction()


def _channels_first(value: np.ndarray) -> np.ndarray:
    """Return (n, height, width, channels) as (n, channels, height, width), others unchanged."""
    return np.moveaxis(value, 3, 1) if value.ndim == 4 else value


def _spell(name: str, values: np.ndarray) -> str:
    """Return name, shape and range of an input."""
    shape = spell(values.shape)
    if not values.size or values.dtype.kind not in "fiub":
        return f"{name} {shape}"
    return f"{name} {shape}, {values.min():.3g} to {values.max():.3g}"


def _predict(
    example: Example,
    outputs: list[dict[str, np.ndarray]],
    options: MetricOptions,
    sides: tuple[int, int] | None,
) -> Example:
    """Return the example with its predictions, by the first form that both models' outputs have.

    Parameters
    ----------
    sides
        Height and width of the input, None if it is not an image.
    """
    boxes = [_find_boxes(values, sides, options) for values in outputs]
    if boxes[0] is not None and boxes[1] is not None:
        total = len(boxes[0]) + len(boxes[1])
        agreement = 2 * common_boxes(boxes[0], boxes[1]) / total if total else None
        rows = [Prediction(boxes=_round(b[:MOST_BOXES])) for b in boxes if b is not None]
        return replace(example, kind="boxes", agreement=agreement, before=rows[0], after=rows[1])
    for name, value in outputs[0].items():
        pair = [values[name] for values in outputs if name in values]
        if len(pair) < 2 or pair[0].shape != pair[1].shape or value.dtype.kind not in "fiu":
            continue
        # NaN has no largest class, so that two broken models would agree
        if not all(np.isfinite(v).all() for v in pair):
            return replace(example, note=NOT_FINITE)
        is_only = len(outputs[0]) == 1
        # heads of a detector without a decoder look like masks, but there are several
        if value.ndim == 4 and min(value.shape[2:]) >= LEAST_MASK and is_only:
            return _predict_map(example, pair, options)
        if value.ndim >= 2 and value.shape[1] > 1 and value.size == value.shape[0] * value.shape[1]:
            return _predict_classes(example, pair, options)
    return example


def _find_boxes(
    outputs: dict[str, np.ndarray], sides: tuple[int, int] | None, options: MetricOptions
) -> np.ndarray | None:
    """Return the detections (n, 6) of one sample, None if the outputs are none."""
    try:
        rows = detections_of(outputs, {"size": np.array([sides or (1, 1)])}, options)
    # a decoder of the user may raise anything on outputs that it was not made for
    except Exception:
        return None
    if len(rows) != 1:
        return None
    boxes = rows[0][rows[0][:, 4] >= LEAST_SCORE]
    return np.asarray(boxes[np.argsort(-boxes[:, 4], kind="stable")])


def _round(rows: np.ndarray) -> list[list[float]]:
    """Return rows as lists of four digits, which are enough for a picture."""
    return [[float(f"{value:.4g}") for value in row] for row in rows]


def _predict_classes(example: Example, pair: list[np.ndarray], options: MetricOptions) -> Example:
    """Return the example with the most probable classes of both models."""
    rows = [_to_probabilities(value.reshape(-1)) for value in pair]
    shown, best = [], []
    for row in rows:
        order = np.argsort(-row, kind="stable")[:MOST_CLASSES]
        best.append(int(order[0]))
        # numbered as the labels are
        classes = [[int(k) - options.class_offset, float(f"{row[k]:.4g}")] for k in order]
        shown.append(Prediction(classes))
    agreement = float(best[0] == best[1])
    return replace(example, kind="classes", agreement=agreement, before=shown[0], after=shown[1])


def _to_probabilities(scores: np.ndarray) -> np.ndarray:
    """Return scores that are probabilities already, else their softmax."""
    scores = np.asarray(scores, np.float64)
    # independent probabilities per class need not add up to 1
    if scores.min() >= 0 and scores.max() <= 1:
        return scores
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum())


def _predict_map(example: Example, pair: list[np.ndarray], options: MetricOptions) -> Example:
    """Return the example with the masks of both models, or with the images that they return."""
    if not example.picture:
        return example
    if pair[0].shape[1] in (1, 3):
        shown = []
        # images in 0..1 and in 0..255 are both common
        factor = 255.0 if np.abs(pair[0]).max() <= 2 else 1.0
        for value in pair:
            pixels = np.moveaxis(value[0], 0, -1).astype(np.float32) * factor
            shown.append(Prediction(picture=encode_picture(to_bytes(pixels)[0])))
        return replace(example, kind="image", before=shown[0], after=shown[1])
    masks = [value[0, options.class_offset :].argmax(0) for value in pair]
    rows = []
    for mask in masks:
        classes = _list_shares(np.bincount(mask.reshape(-1)), mask.size)
        rows.append(
            Prediction(classes, picture=encode_mask(mask, (example.size[0], example.size[1])))
        )
    agreement = float((masks[0] == masks[1]).mean())
    return replace(example, kind="mask", agreement=agreement, before=rows[0], after=rows[1])


def _list_shares(counts: np.ndarray, total: int) -> list[list[Any]]:
    """Return [class, share of the pixels] of the most frequent classes."""
    order = np.argsort(-counts, kind="stable")[: 2 * MOST_CLASSES]
    return [[int(k), float(f"{counts[k] / total:.4g}")] for k in order if counts[k]]
