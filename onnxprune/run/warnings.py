"""Warnings of a run about its data, targets and outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import linears
from onnxprune.data.dataset import Data
from onnxprune.data.images import Images
from onnxprune.data.preprocess import DEFAULT
from onnxprune.engines import ENGINES
from onnxprune.engines.bench_warnings import is_width_warning
from onnxprune.engines.cost.explain import explain
from onnxprune.errors import plural
from onnxprune.ir.io import Model
from onnxprune.report.data import Costs, LayerCost, TargetRow, VerificationSummary
from onnxprune.run.adapter import engines_of, follows_engine, preprocess_of
from onnxprune.run.device_warnings import device_warnings
from onnxprune.run.recipe import Recipe
from onnxprune.run.splits import Splits

FEW_INPUTS = 32  # the demo keeps 65, 88 and 98 % top-1 with 8, 16 and 32 inputs, 99 % with more
LATENCY_SLACK = 0.05  # two measurements of one model agree to about this on an idle machine
DEFAULT_PREPROCESSING = (
    "images are preprocessed with the defaults: RGB, values from 0 to 1; if the model was trained "
    "with other preprocessing, pass --preprocess (ImageNet: --preprocess imagenet), or --scale, "
    "--mean, --std and --order"
)
NO_DATA = (
    "no calibration data: channels are scored by their weights only and nothing is repaired, "
    "which costs accuracy; pass --data with a few hundred real inputs"
)


# Topics of warnings, in the order in which they matter
INPUTS, ALIGNMENT, MACHINE = "inputs", "alignment", "machine"


def of_topic(topic: str, *parts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each text of several parts with its topic."""
    for text in chain.from_iterable(parts):
        yield topic, text


def timing_warnings(
    bench: Mapping[str, Any], layers: Sequence[LayerCost], model: Model, recipe: Recipe
) -> Iterator[tuple[str, str]]:
    """Yield topic and text of each warning about a measurement, those about widths first.

    Parameters
    ----------
    bench
        The measurement as JSON; empty without one.
    """
    texts = bench.get("warnings", ())
    yield from of_topic(ALIGNMENT, device_warnings(model, recipe))
    # widths that were chosen for the engine are no surprise
    if not follows_engine(recipe):
        yield from of_topic(ALIGNMENT, filter(is_width_warning, texts))
    if bench:
        engine = ENGINES.get(engines_of(recipe)[0])
        yield from of_topic(ALIGNMENT, explain(layers, model, engine, recipe.precision))
    yield from of_topic(MACHINE, (text for text in texts if not is_width_warning(text)))


def data_warnings(splits: Splits, recipe: Recipe, used: bool) -> Iterator[str]:
    """Yield warnings about the inputs.

    Parameters
    ----------
    used
        Whether a stage read the calibration inputs.
    """
    data = splits.calibration
    if data.warning:
        # random inputs that no stage has read cannot have distorted anything
        yield data.warning if used else NO_DATA
    elif used and data.samples < FEW_INPUTS:
        yield (
            f"only {plural(data.samples, 'calibration input')}, to which weights are refitted: use "
            f"at least {FEW_INPUTS}, better a few hundred (labels are not needed)"
        )
    if used:
        yield from default_preprocessing(data, recipe)
    labels = splits.report_labels
    if recipe.candidate and splits.selection_labels is None and labels is not None:
        yield (
            f"too few labeled samples ({labels.samples}) to select among candidates: all are used "
            "for the report"
        )


def verification_warnings(verification: VerificationSummary) -> Iterator[str]:
    """Yield what limits the verification of the cut."""
    if verification.vacuous:
        yield (
            "verification proves little: zeroing the removed channels hardly changes the outputs "
            "on any input that was tried; pass --data with real inputs"
        )
    if verification.random:
        yield (
            "the model draws random numbers, which were fixed for verification: "
            f"{', '.join(verification.random)}"
        )
    if verification.ties:
        yield (
            "rounding changed the choice of selecting nodes, whose inputs agree: "
            f"{', '.join(verification.ties)}"
        )


def latency_warnings(recipe: Recipe, rows: Sequence[TargetRow]) -> Iterator[str]:
    """Yield a warning for each latency target that the final measurement misses.

    Parameters
    ----------
    rows
        One per target of the recipe, in its order; further ones are ignored.
    """
    for target, row in zip(recipe.target, rows, strict=False):
        if target.engine and row.reached > row.allowed * (1 + LATENCY_SLACK):
            yield (
                f"target {row.target}: final measurement is {row.reached:.3g} ms (limit "
                f"{row.allowed:.3g} ms) although the search measured less; re-measure on an idle "
                "machine"
            )


def growth_warning(original: Model, model: Model, before: Costs, after: Costs) -> Iterator[str]:
    """Yield a warning if the artifact has more parameters or bytes than the original."""
    grown = [
        f"{(after[cost] or 0) / before[cost]:.2f} times the {name}"
        for cost, name in (("params", "parameters"), ("bytes", "bytes of weights"))
        if before[cost] and (after[cost] or 0) > before[cost]
    ]
    if not grown:
        return
    added = [w for name, w in model.weights.items() if name not in original.weights]
    # repairs add biases, which are vectors; other new weights are copies of shared ones
    vectors = sum(prod(w.shape) for w in added if len(w.shape) == 1)
    others = sum(prod(w.shape) for w in added if len(w.shape) > 1)
    yield (
        f"the result is larger than the original: {' and '.join(grown)}. New weights hold "
        f"{others} values (one copy per use of a shared weight, see --untie), new biases {vectors}"
    )


def refit_warning(analysis: Analysis, model: Model, recipe: Recipe) -> Iterator[str]:
    """Yield a warning if nodes read removed channels with weights that no repair refits."""
    if recipe.repair == "none":
        return
    refitted = {linear.node for linear in linears(analysis)}
    before, after = analysis.model.weights, model.weights
    # nodes with a matrix of their own that sum over channels
    summing = {mask.node for mask in analysis.masks} - refitted
    cut: set[int] = set()
    for use in analysis.uses:
        matrix = use.node in summing and len(use.axes) > 1 and use.tensor in after
        if matrix and before[use.tensor].shape != after[use.tensor].shape:
            cut.add(use.node)
    counts = Counter(analysis.nodes[node].op_type for node in cut)
    if counts:
        ops = ", ".join(f"{op} ({plural(count, 'node')})" for op, count in sorted(counts.items()))
        yield (
            f"the repair does not refit the weights of {ops} to the channels that they lost; "
            "expect a larger error there, or fine-tune with onnxprune tune"
        )


def default_preprocessing(data: Data, recipe: Recipe) -> Iterator[str]:
    """Yield a warning if images are preprocessed by numbers that nobody chose."""
    if _uses_default_preprocessing(data, recipe):
        yield DEFAULT_PREPROCESSING


def _uses_default_preprocessing(data: Data, recipe: Recipe) -> bool:
    """Return whether images feed a float model with default scale, mean, std, post and order."""
    if not isinstance(data.source, Images):
        return False
    items = data.inputs.items.items()
    if not any(v.dtype.kind == "f" and data.inputs.image(name) is not None for name, v in items):
        return False
    return has_default_numbers(recipe)


def has_default_numbers(recipe: Recipe) -> bool:
    """Return whether scale, mean, std, post and order are the defaults, and not by a preset."""
    # a preset is a choice even if its numbers are the defaults
    if recipe.preprocess is not None:
        return False
    chosen = preprocess_of(recipe)
    names = ("scale", "mean", "std", "post", "order")
    return all(getattr(chosen, name) == getattr(DEFAULT, name) for name in names)
