"""Judgment of the unpruned model on some labeled inputs: near chance, or better with other options.

Pixels are tried in the other color order, and with every preset if the model is near chance or
nobody chose their preprocessing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.data.labeled import LabeledData
from onnxprune.data.preprocess import ORDERS, Preprocess, channels_of
from onnxprune.data.presets import PRESETS
from onnxprune.errors import OnnxpruneError
from onnxprune.ir.io import Model
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import Metric
from onnxprune.metrics.compare import paired_error
from onnxprune.metrics.run import measure
from onnxprune.run.adapter import metric_options
from onnxprune.run.recipe import Recipe
from onnxprune.run.warnings import has_default_numbers

LEAST_SAMPLES, MOST_SAMPLES = 24, 256
MACS_BUDGET = 1.2e10  # of one pass: about a second on one thread
CHANCE_ERRORS = 2.0  # standard errors above chance up to which a model counts as near it
NEAR_ZERO = 0.01  # of metrics from 0 to 1 whose chance is about 0, such as miou and coco
SURE = 3.0  # standard errors by which other options must be better: 1 in 700 by chance
LEAST_GAIN = 0.01  # of the metric: a smaller one is no cause to change options
_CLASSES_GUESSED = {"top1": 1, "top5": 5}
_FROM_ZERO = ("miou", "coco", "map50")
_BETTER = re.compile(r"with --(order|preprocess) (\S+) it is ")


def judge_labels(analysis: Analysis, labels: LabeledData | None, recipe: Recipe) -> tuple[str, ...]:
    """Return what is implausible about the unpruned model's first metric on some labels."""
    macs = max(analysis.cost().macs, 1)
    count = int(min(MACS_BUDGET // macs, MOST_SAMPLES))
    # a model that is too slow for enough samples within the budget is not judged
    if labels is None or not recipe.metric or min(count, labels.samples) < LEAST_SAMPLES:
        return ()
    # spread over the data, which may be sorted by class
    places = np.unique(np.linspace(0, labels.samples - 1, count).astype(int))
    part = replace(labels, chosen=tuple(labels.chosen[i] for i in places))
    try:
        return tuple(_judge_part(analysis.model, part, recipe))
    except OnnxpruneError:  # the evaluation says what is wrong
        return ()


def check_metrics(model: Model, labels: LabeledData | None, recipe: Recipe) -> None:
    """Apply all metrics to a few labeled inputs: labels, outputs, decoder, shapes.

    Raises
    ------
    OnnxpruneError
        A metric does not fit the labels or the outputs; the stages that need it run much later.
    """
    if labels is None:
        return
    part = replace(labels, chosen=_choose_extremes(labels))
    metrics = [find_metric(name, metric_options(recipe)) for name in recipe.metric]
    measure(model, part, metrics, threads=recipe.compute_threads, batch_size=recipe.batch_size)


def _choose_extremes(labels: LabeledData) -> tuple[int, ...]:
    """Return the first and last sample, and those with the smallest and largest labels."""
    # folders of classes are sorted by class
    indices = {labels.chosen[0]: None, labels.chosen[-1]: None}
    for values in getattr(labels.source, "labels", {}).values():
        if values.ndim == 1:
            own = values[list(labels.chosen)]
            indices |= {labels.chosen[int(place)]: None for place in (own.argmin(), own.argmax())}
    return tuple(indices)


def _judge_part(model: Model, labels: LabeledData, recipe: Recipe) -> Iterator[str]:
    """Yield that the model is near chance, and which preprocessing is better."""
    metric = _measure(model, labels, recipe)
    value = metric.result().value
    near_chance = is_near_chance(metric)
    if metric.name in _CLASSES_GUESSED and len(metric.result().counts) == 1:
        yield (
            f"all {labels.samples} labeled inputs are of one class, so that {metric.name} says "
            "little about the others: use labeled inputs of all classes"
        )
    better = ""
    if _takes_pixels(labels):
        better = _find_better(model, labels, recipe, metric, near_chance)
    figures = (
        f"{metric.name} of the unpruned model is {value:.3g} on {labels.samples} labeled inputs"
    )
    if near_chance:
        advice = better or (
            "check --scale, --mean, --std, --order and --class-offset, and the labels"
        )
        yield f"{figures}, which is near chance; {advice}"
    elif better:
        yield f"{figures}; {better}"


def is_near_chance(metric: Metric) -> bool:
    """Return whether a metric is about that of a model that knows nothing."""
    score = metric.result()
    if metric.name in _FROM_ZERO:
        return score.value < NEAR_ZERO
    guesses = _CLASSES_GUESSED.get(metric.name)
    classes = len(score.counts)
    # top5 of five classes is always 1
    if guesses is None or classes <= guesses:
        return False
    # at least as many classes exist as occur, so that chance is at most this
    chance = guesses / classes
    return score.value <= chance + CHANCE_ERRORS * np.sqrt(chance * (1 - chance) / score.n)


def _find_better(
    model: Model, labels: LabeledData, recipe: Recipe, metric: Metric, near_chance: bool
) -> str:
    """Return which option makes the metric better beyond doubt, "" if none."""
    chosen = labels.inputs.preprocess
    other = next(order for order in ORDERS if order != chosen.order)
    trials: dict[str, Preprocess] = {}
    name, item = next(iter(labels.inputs.items.items()))
    axes = labels.inputs.image(name)
    if axes is not None and channels_of(item.shape, axes) == 3:
        trials[f"--order {other}"] = replace(chosen, order=other)
    # each preset costs a pass; a model above chance is unlikely to be fed a wrong scale by choice
    if near_chance or has_default_numbers(recipe):
        for preset, numbers in PRESETS.items():
            trials[f"--preprocess {preset}"] = replace(chosen, **numbers)
    given = metric.result().value
    sign = 1 if metric.higher_is_better else -1
    tried = []
    for option, preprocess in trials.items():
        # numbers that were measured already
        if preprocess == chosen:
            continue
        inputs = replace(labels.inputs, preprocess=preprocess)
        trial = _measure(model, replace(labels, inputs=inputs), recipe)
        gain = sign * (trial.result().value - given)
        if gain > LEAST_GAIN * abs(given):
            tried.append((gain, option, trial))
    # the largest gain first, because the error of a detection metric takes longer than a pass
    for gain, option, trial in sorted(tried, key=lambda row: -row[0]):
        error = paired_error(metric, trial)
        # the paired error is 0 if the gain is the same for all samples
        sigmas = gain / max(error, 1e-12) if error is not None else 0.0
        # a model that remains near chance has another fault
        if sigmas > SURE and not is_near_chance(trial):
            return f"with {option} it is {trial.result().value:.3g}{_explain(option, chosen)}"
    return ""


def find_better_option(warning: str) -> dict[str, str]:
    """Return the option that a warning of `judge_labels` says is better; {} if it names none."""
    match = _BETTER.search(warning)
    return {match[1]: match[2]} if match else {}


def _explain(option: str, chosen: Preprocess) -> str:
    """Return the likely cause that an option points to."""
    if not option.startswith("--order"):
        return ""
    given, expected = chosen.order.upper(), option.split()[-1].upper()
    return f": the model expects {expected}, but is fed {given}"


def _measure(model: Model, labels: LabeledData, recipe: Recipe) -> Metric:
    """Return the first metric of the recipe, on some labels."""
    metric: Metric = find_metric(recipe.metric[0], metric_options(recipe))
    measure(model, labels, [metric], threads=recipe.compute_threads, batch_size=recipe.batch_size)
    return metric


def _takes_pixels(labels: LabeledData) -> bool:
    """Return whether the preprocessing options apply to the inputs: 8-bit images."""
    items = list(labels.inputs.items)
    if len(items) != 1 or labels.inputs.image(items[0]) is None:
        return False
    _, raw, _ = labels.source.read(labels.chosen[0])
    is_float = labels.inputs.items[items[0]].dtype.kind == "f"
    return is_float and items[0] in raw and np.asarray(raw[items[0]]).dtype == np.uint8
