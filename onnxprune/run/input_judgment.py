"""Judgment of the inputs of a run before any work.

Each finding is a sentence with the likely cause and the option that mends it. Thresholds were
chosen on the calibration images of 15 trained models (classifiers, detectors, segmentation,
super-resolution): figures in the comments are the extremes with the right preprocessing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.data.dataset import Data
from onnxprune.data.images import Images
from onnxprune.data.inputs import Batch, Inputs, samples_of
from onnxprune.data.labeled import LabeledData
from onnxprune.data.preprocess import Preprocess
from onnxprune.data.presets import PRESETS
from onnxprune.errors import DataError, OnnxpruneError, plural
from onnxprune.ir.model import ModelView
from onnxprune.ir.nodes import label
from onnxprune.ir.runtime import Session

MOST_SAMPLES = 32
MACS_BUDGET = 6e9  # of the batch: well below a second on one thread
NEARLY_CONSTANT = 0.02  # standard deviation of a channel over its mean; at least 0.41
PIXEL_LIMIT = 300.0  # above any 8-bit pixel; mean and std of 0..1 take pixels of 255 to 1,100
RAW_PEAK = 30.0  # pixels scaled in any usual way stay below 5
STD_FACTOR = 2.0  # of the first BatchNormalization's; at most 1.1
MEAN_SHIFT = 1.0  # in standard deviations of that BatchNormalization; at most 0.26
# Median over the channels of the first layer: standard deviation over bias. With a folded
# BatchNormalization it is 0.2 to 18; raw pixels take it above 23, images of 0..1 instead of 0..255
# below 0.006.
RAW_RATIO, SMALL_RATIO = 20.0, 0.02
LEAST_CLASSES, LEAST_SAMPLES = 5, 16  # for "all inputs give one class"; at most a third do
SAME_OUTPUT = 1e-4  # standard deviation of the outputs over samples, of their size; at least 0.13
NO_ENTROPY = 1e-4  # of the classes, 1 = uniform; at least 0.0011


@dataclass(frozen=True)
class Stem:
    """First layer of a model with one input.

    Attributes
    ----------
    tensor
        Its output.
    bias
        Its bias, None if it has none.
    norm
        Label of the BatchNormalization that follows, "" if none does.
    mean, std
        Statistics that this BatchNormalization recorded.
    """

    tensor: str
    bias: np.ndarray | None
    norm: str = ""
    mean: np.ndarray | None = None
    std: np.ndarray | None = None


def judge_inputs(analysis: Analysis, data: Data) -> tuple[str, ...]:
    """Return what is implausible about the first samples; nothing for synthetic inputs."""
    name = _float_input(data.inputs)
    if name is None or data.warning:
        return ()
    macs = max(analysis.cost().macs, 1)
    count = int(min(max(MACS_BUDGET // macs, 1), MOST_SAMPLES))
    try:
        return tuple(_judge_batches(analysis.model, data, name, _take(data, count)))
    except OnnxpruneError:  # the stage that needs the model or the data says what is wrong
        return ()


def check_distinct(data: Data) -> None:
    """Check that real inputs are not all equal.

    Raises
    ------
    DataError
        They are: no channel varies, so that every score and refit would fit this one input. A
        single input stays possible, and is warned of as too few.
    """
    if data.warning or len(data.chosen) < 2 or len(set(data.digests())) > 1:
        return
    raise DataError(
        "data-constant",
        f"all {len(data.chosen)} inputs of {data.describe()} are equal, from which nothing can be "
        "learned about the channels: give a few hundred different inputs like those that the model "
        "will see",
    )


def describe_skipped(data: Data | LabeledData | None, what: str = "") -> tuple[str, ...]:
    """Return that some of the selected inputs cannot be decoded, with the first reason.

    Parameters
    ----------
    what
        Word before "images": "labeled ".
    """
    if data is None or not data.skipped:
        return ()
    count = len(data.skipped)
    images = f"{count} of {count + len(data.chosen)} {what}images"
    verb = "is" if count == 1 else "are"
    return (f"{images} cannot be read and {verb} skipped: {data.skipped[0]}",)


def _take(data: Data, count: int) -> list[Batch]:
    """Return batches of about `count` samples; models of a fixed batch size take several."""
    taken: list[Batch] = []
    for feeds in data.batches(count):
        taken.append(feeds)
        if sum(map(samples_of, taken)) >= count:
            break
    return taken


def _join(batches: Sequence[Mapping[str, Any]], name: str, samples: Sequence[int]) -> Any:
    """Return a tensor of all batches, or of the first if its samples are not on the first axis."""
    parts = [b[name] for b in batches]
    is_joined = all(
        isinstance(p, np.ndarray) and p.ndim and len(p) == n
        for p, n in zip(parts, samples, strict=True)
    )
    return np.concatenate(parts) if is_joined else parts[0]


def _judge_batches(
    model: ModelView, data: Data, name: str, batches: Sequence[Batch]
) -> Iterator[str]:
    """Yield the first finding about the scale of the inputs, else about the outputs."""
    samples = [samples_of(b) for b in batches]
    joined = _join(batches, name, samples)
    values = _channels_first(joined, data.inputs, name)
    finding = _judge_values(values, name, data.inputs.preprocess, takes_pixels(data))
    if not finding and _is_of_one_color(joined, data.inputs, name):
        finding = f"every image of input {name!r} is of a single color; check the data"
    # wrong values explain all that follows, and finding them takes no run of the model
    if finding:
        yield finding
        return
    stem = find_stem(model)
    outputs = [info.name for info in model.proto.graph.output]
    session = Session(model, [*outputs, *([stem.tensor] if stem else [])])
    # one run of the model serves the stem and the outputs
    runs = [session.run(b) for b in batches]
    if stem:
        output = _join(runs, stem.tensor, samples)
        finding = _judge_stem(stem, output, values, data, name, session)
    if finding:
        yield finding
    elif sum(samples) >= LEAST_SAMPLES:
        yield from _judge_outputs({n: _join(runs, n, samples) for n in outputs}, sum(samples))


def _float_input(inputs: Inputs) -> str | None:
    """Return the name of a model's only input if it is float or an image, None otherwise."""
    # of several inputs it is unknown which one feeds the first layer
    if len(inputs.items) != 1:
        return None
    name, item = next(iter(inputs.items.items()))
    return name if item.dtype.kind == "f" and not item.shared else None


def takes_pixels(data: Data) -> bool:
    """Return whether the preprocessing options apply to these data: 8-bit images."""
    name = _float_input(data.inputs)
    if name is None or data.inputs.image(name) is None:
        return False
    if isinstance(data.source, Images):
        return True
    # arrays are preprocessed like images if they hold 8-bit values
    _, raw = next(iter(data.source.read(data.chosen[:1])))
    return name in raw and np.asarray(raw[name]).dtype == np.uint8


def _channels_first(values: np.ndarray, inputs: Inputs, name: str) -> np.ndarray:
    """Return float64 values (channels, all others); one channel for what is no image."""
    # the square of a float16 value overflows above 255
    values = values.astype(np.float64)
    axes = inputs.image(name)
    if axes is None:
        return values.reshape(1, -1)
    return np.moveaxis(values, axes.channels, 0).reshape(values.shape[axes.channels], -1)


def _is_of_one_color(images: np.ndarray, inputs: Inputs, name: str) -> bool:
    """Return whether no channel of any image varies over its pixels."""
    axes = inputs.image(name)
    if axes is None or images.size <= images.shape[0] * images.shape[axes.channels]:
        return False
    pixels = np.moveaxis(images, axes.channels, 1)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return bool((pixels == pixels[..., :1]).all())


def _judge_values(values: np.ndarray, name: str, chosen: Preprocess, pixels: bool) -> str:
    """Return what is wrong with the values themselves, "" if nothing is."""
    std, mean = values.std(1), np.abs(values.mean(1))
    if (std <= NEARLY_CONSTANT * mean).all():
        share = float((std / np.maximum(mean, 1e-30)).max())
        text = f"input {name!r} is nearly constant: its values vary by {share:.2g} of their mean"
        # a mean above 2 is of 0..255, a scale below 0.1 maps to about 0..1
        if pixels and float(np.max(chosen.mean)) > 2 and chosen.scale < 0.1:
            return (
                f"{text}; --mean and --std are of pixels from 0 to 255, but --scale "
                f"{chosen.scale:.3g} maps them to 0..1: pass --scale 1 (ImageNet: --preprocess "
                "imagenet-255), or divide mean and std by 255"
            )
        return f"{text}; check --scale, --mean and --std, or the data"
    peak = float(np.abs(values).max())
    if pixels and peak > PIXEL_LIMIT:
        return (
            f"input {name!r} reaches {peak:.3g}, more than any pixel: --mean and --std are of "
            f"pixels from 0 to 1, but --scale {chosen.scale:.3g} leaves them at 0..255: pass "
            "--scale 0.0039215686 (1/255; ImageNet: --preprocess imagenet)"
        )
    return ""


def find_stem(model: ModelView) -> Stem | None:
    """Return the first Conv or Gemm with a constant weight, and its BatchNormalization."""
    nodes = model.proto.graph.node
    weights = model.weights
    first = next(
        (n for n in nodes if n.op_type in ("Conv", "Gemm") and n.input[1] in weights), None
    )
    if first is None:
        return None
    tensor = first.output[0]
    bias = None
    if len(first.input) > 2 and first.input[2] in weights:
        bias = np.asarray(weights[first.input[2]].array(), np.float64)
    for node in nodes:
        is_norm = node.op_type == "BatchNormalization" and node.input[0] == tensor
        if is_norm and all(name in weights for name in node.input[3:5]):
            mean, variance = (np.asarray(weights[n].array(), np.float64) for n in node.input[3:5])
            return Stem(tensor, bias, label(node), mean, np.sqrt(np.maximum(variance, 0)))
    return Stem(tensor, bias)


def _judge_stem(
    stem: Stem, output: np.ndarray, values: np.ndarray, data: Data, name: str, session: Session
) -> str:
    """Return whether the first layer sees another scale than it was made for, "" if not."""
    # presets are options of pixels; arrays get advice without an option
    pixels = takes_pixels(data)
    if stem.norm:
        factor, shift = compare_with_norm(stem, output)
        if not 1 / STD_FACTOR <= factor <= STD_FACTOR or shift > MEAN_SHIFT:
            fitting = _find_preset(stem, data, session) if pixels else ""
            advice = f"--preprocess {fitting} fits" if fitting else _advise(factor, pixels)
            return (
                f"input {name!r} is not on the scale of the training: the first layer's outputs "
                f"have {factor:.2g} times the standard deviation that {stem.norm} recorded, their "
                f"means are shifted by {shift:.2g} of it; {advice}"
            )
        return ""
    # biases that are mostly zero are no scale to compare with
    if stem.bias is None or not np.median(np.abs(stem.bias)):
        return ""
    ratio = float(np.median(_rows(output).std(1)) / np.median(np.abs(stem.bias)))
    peak, least = float(values.max()), float(values.min())
    # a model for raw pixels has small weights in its first layer, so that its ratio is usual
    if least >= 0 and peak > RAW_PEAK and ratio > RAW_RATIO:
        return (
            f"input {name!r} holds raw 8-bit pixels ({least:.3g} to {peak:.3g}), for which the "
            f"first layer is not made: its outputs are {ratio:.2g} times as large as its biases; "
            f"{_advise(ratio, pixels)}"
        )
    if ratio < SMALL_RATIO:
        return (
            f"input {name!r} (up to {np.abs(values).max():.2g}) is too small for the first layer: "
            f"its outputs are {ratio:.2g} times as large as its biases; {_advise(ratio, pixels)}"
        )
    return ""


def compare_with_norm(stem: Stem, output: np.ndarray) -> tuple[float, float]:
    """Return medians over channels: standard deviation over the recorded one, shift of the mean."""
    assert stem.mean is not None and stem.std is not None
    rows = _rows(output)
    alive = stem.std > 1e-3 * stem.std.max()  # a dead channel has no scale
    # neutral figures, which give no finding, where nothing can be compared
    if rows.shape[0] != len(stem.mean) or not alive.any():
        return 1.0, 0.0
    # medians, because a few channels may see an unusual batch
    std = stem.std[alive]
    factor = float(np.median(rows.std(1)[alive] / std))
    shift = float(np.median(np.abs(rows.mean(1) - stem.mean)[alive] / std))
    return factor, shift


def _rows(output: np.ndarray) -> np.ndarray:
    """Return the output of a layer as float64 (channels, all others)."""
    return np.moveaxis(output.astype(np.float64), 1, 0).reshape(output.shape[1], -1)


def _find_preset(stem: Stem, data: Data, session: Session) -> str:
    """Return the preset with which the first layer sees the recorded statistics, "" if none."""
    # a distance of 1 is at the limits: a preset beyond them does not fit either
    best, least = "", 1.0
    for preset, numbers in PRESETS.items():
        trial = with_preprocess(data, replace(data.inputs.preprocess, **numbers))
        # the model runs once more per preset, so on fewer samples
        batches = _take(trial, MOST_SAMPLES // 4)
        runs = [session.run(b) for b in batches]
        output = _join(runs, stem.tensor, [samples_of(b) for b in batches])
        factor, shift = compare_with_norm(stem, output)
        # both in units of their limits
        distance = max(abs(np.log2(factor)) / np.log2(STD_FACTOR), shift / MEAN_SHIFT)
        if distance < least:
            best, least = preset, distance
    return best


def with_preprocess(data: Data, preprocess: Preprocess) -> Data:
    """Return the same images with another preprocessing."""
    inputs = replace(data.inputs, preprocess=preprocess)
    source = data.source
    # these hold inputs of their own; other sources give raw arrays, which Data preprocesses
    if isinstance(source, Images):
        source = Images(source.place, source.files, inputs, source.name)
    return replace(data, source=source, inputs=inputs)


def _advise(factor: float, pixels: bool) -> str:
    """Return which option makes inputs smaller or larger."""
    if not pixels:
        return "arrays are not preprocessed: store them as the model was trained on"
    if factor > 1:
        return "pass --preprocess imagenet or unit, or --scale, --mean and --std of the training"
    return "pass --preprocess imagenet or none, or --scale, --mean and --std of the training"


def _judge_outputs(outputs: dict[str, Any], samples: int) -> Iterator[str]:
    """Yield what is implausible about the original's outputs: constant, or always one class."""
    advice = "check --scale, --mean, --std and --order, and the data"
    for name, values in outputs.items():
        # sequences and maps are no arrays
        is_array = isinstance(values, np.ndarray) and values.dtype.kind == "f" and values.ndim
        # without one row per sample there is nothing to compare samples by
        if not is_array or len(values) != samples:
            continue
        rows = values.reshape(samples, -1).astype(np.float64)
        spread, size = rows.std(0).mean(), np.abs(rows).mean()
        if spread <= SAME_OUTPUT * size:
            yield f"output {name!r} is the same for all {plural(samples, 'input')}; {advice}"
            return
        # (samples, classes): the largest entry of a map or a sequence is no class
        is_flat = values.ndim >= 2 and values.shape[1] == rows.shape[1] >= LEAST_CLASSES
        if not is_flat:
            continue
        classes = np.unique(rows.argmax(1))
        if len(classes) == 1:
            yield (
                f"all {plural(samples, 'input')} give class {classes[0]} at output {name!r}, with "
                f"an entropy of {_entropy(rows):.2g}; if they are not of one class, {advice}"
            )
            return
        if _entropy(rows) < NO_ENTROPY:
            yield (
                f"output {name!r} is saturated: its classes have an entropy of "
                f"{_entropy(rows):.2g} (1 = uniform); {advice}"
            )
            return


def _entropy(rows: np.ndarray) -> float:
    """Return the mean entropy of classes, 1 for the uniform distribution.

    Rows that are no probabilities are taken as logits.
    """
    # float16 probabilities do not sum to exactly 1
    is_probability = (rows >= 0).all() and np.abs(rows.sum(1) - 1).max() < 1e-2
    if not is_probability:
        # less the maximum, so that nothing overflows
        rows = np.exp(rows - rows.max(1, keepdims=True))
        rows = rows / rows.sum(1, keepdims=True)
    entropy = -(rows * np.log(np.maximum(rows, 1e-30))).sum(1).mean()
    return float(max(entropy, 0.0) / np.log(rows.shape[1]))
