"""Is the result right, and what is it worth: the masked oracle, fidelity to the original, metrics on labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from onnxprune.analysis.groups import Analysis
from onnxprune.data.dataset import Data, Preprocess, open_data, split
from onnxprune.data.images import Images
from onnxprune.data.labeled import LabeledData, open_labeled
from onnxprune.data.preprocess import DEFAULT
from onnxprune.errors import DataError, ModelError, VerificationError
from onnxprune.ir.io import Model, digest
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import MetricOptions, Score
from onnxprune.metrics.fidelity import Fidelity, fidelity
from onnxprune.metrics.run import measure
from onnxprune.run.recipe import Recipe
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
from onnxprune.types import Plan

HELD_OUT_PART, HELD_OUT_MOST = (
    4,
    64,
)  # one input for every so many calibration inputs, at most so many: for figures that nothing was chosen by
SELECTED_PART, SELECTED_LEAST, SELECTED_MOST = (
    4,
    25,
    1000,
)  # one labeled sample in so many chooses between candidates, with a least and a most
RESULT = "result_sha256"  # in a plan's decided_by: the model that its run wrote, where repair changed weights


@dataclass(frozen=True)
class Parts:
    """Inputs by what they are for; none is in two parts.

    calibration: channels are chosen and weights fitted by them; selection, selection_labels: choose between finished models, without and with labels;
    report, report_labels: only measure. None where there is no such part: too few samples, or nothing to choose.
    """

    calibration: Data
    selection: Data | None = None
    report: Data | None = None
    selection_labels: LabeledData | None = None
    report_labels: LabeledData | None = None

    def describe(self) -> dict[str, str]:
        """Part -> what is in it, of real inputs."""
        data = {"calibration": self.calibration, "selection": self.selection, "report": self.report}
        found = {
            name: part.describe()
            for name, part in data.items()
            if part is not None and not part.warning
        }
        labels = {"selection_labels": self.selection_labels, "report_labels": self.report_labels}
        return found | {name: part.describe() for name, part in labels.items() if part is not None}


def open_data_for(model: Model, recipe: Recipe) -> Data:
    """The data of a recipe, checked against the model's inputs: its calibration inputs and, where there are real ones, some more to hold out."""
    more = min(HELD_OUT_MOST, recipe.samples // HELD_OUT_PART) if recipe.data else 0
    more *= 2 if recipe.max_divergence is not None else 1
    return open_data(
        recipe.data,
        input_types(model),
        samples=recipe.samples + more,
        seed=recipe.seed,
        preprocess=preprocess(recipe),
        shapes=recipe.shape or None,
    )


def open_labels(model: Model, recipe: Recipe) -> LabeledData | None:
    """The labeled inputs of a recipe that measures with them."""
    if not (recipe.labeled and recipe.metric):
        return None
    return open_labeled(
        recipe.labeled,
        input_types(model),
        seed=recipe.seed,
        preprocess=preprocess(recipe),
        shapes=recipe.shape or None,
    )


def parts_of(everything: Data, labels: LabeledData | None, recipe: Recipe) -> Parts:
    """The inputs of a run, each for one purpose: some are held out for the report where there are enough real ones, and as many to choose by where asked.

    Raises
    ------
    DataError
        There are too few for `max_divergence`.
    """
    batch = everything.inputs.batch or 1
    shares = 2 if recipe.max_divergence is not None else 1
    keep = min(HELD_OUT_MOST, len(everything.chosen) // (HELD_OUT_PART + shares))
    keep = 0 if everything.flipped or everything.warning else keep - keep % batch
    rest, selection, report = everything, None, None
    if keep:
        rest, report = split(rest, len(rest.chosen) - keep, keep)
    if recipe.max_divergence is not None:
        if report is None:
            raise DataError(
                "data-samples",
                "max_divergence needs separate real inputs to measure on; "
                f"{everything.describe()} are too few, or synthetic: give at least "
                f"{HELD_OUT_PART + 2} batches",
            )
        rest, selection = split(rest, len(rest.chosen) - keep, keep)
    if labels is None or not recipe.candidate:
        return Parts(rest, selection, report, None, labels)
    count = min(SELECTED_MOST, labels.samples // SELECTED_PART)
    if count < SELECTED_LEAST:
        return Parts(rest, selection, report, None, labels)
    chosen, kept = labels.split(count / labels.samples, recipe.seed)
    return Parts(rest, selection, report, chosen, kept)


def oracle(
    analysis: Analysis, plan: Plan, pruned: Model, data: Data | None, recipe: Recipe
) -> dict[str, Any]:
    """Figures of a cut model (before repair) against the masked original, on one input.

    Raises
    ------
    VerificationError
        It differs by more than the tolerance.
    """
    feeds = next(iter(data.batches(1))) if data else None
    found = verify(
        analysis,
        plan,
        pruned,
        feeds,
        tolerance=recipe.tolerance,
        seed=recipe.seed,
        threads=recipe.threads,
    )
    if not found.ok:
        worst = max(found.outputs, key=lambda name: found.outputs[name])
        raise VerificationError(
            "verification-failed",
            f"output {worst!r} of the pruned model differs from the masked original's by "
            f"{found.difference:.2g} of its largest value; the limit is {found.tolerance:.2g} "
            "(--tolerance)",
        )
    return found.as_dict()


def check(
    analysis: Analysis, plan: Plan, pruned: Model, data: Data | None, recipe: Recipe
) -> dict[str, Any]:
    """Figures of a model that a plan's run wrote.

    Where weights were repaired, values no longer equal the masked original's: then the plan itself is checked by a cut of its own, and the model by
    the hash that its run left in the plan, or as that very cut.

    Raises
    ------
    VerificationError
        They disagree.
    """
    analysis.check(plan)
    repair, result = plan.decided_by.get("repair", "none"), plan.decided_by.get(RESULT)
    if repair == "none" or not result:
        return oracle(analysis, plan, pruned, data, recipe)
    own = cut(analysis, plan)
    figures = oracle(analysis, plan, own, data, recipe)
    if _shapes(own) != _shapes(pruned):
        raise VerificationError(
            "verification-failed",
            "the model's weights do not match the plan: "
            f"{_first_difference(_shapes(own), _shapes(pruned))}",
        )
    if digest(pruned) not in (result, digest(own)):
        raise VerificationError(
            "verification-failed",
            f"the model (sha256 {digest(pruned)[:12]}...) is not the one that the plan's run wrote "
            f"(sha256 {str(result)[:12]}...): its weights were modified afterwards",
        )
    return {**figures, "repair": repair, RESULT: result}


def evaluated(
    original: Model, pruned: Model, apart: Data | None, labels: LabeledData | None, recipe: Recipe
) -> dict[str, Any]:
    """ "fidelity": of the outputs on inputs that chose nothing; "quality": metric -> before, after, on labeled inputs."""
    found: dict[str, Any] = {"fidelity": {}, "quality": {}}
    if apart is not None:
        found["fidelity"] = compared(original, pruned, apart, recipe).as_dict()
    if labels is not None:
        for before, after in zip(
            *(scored(model, labels, recipe) for model in (original, pruned)), strict=False
        ):
            row: dict[str, Any] = {
                "before": before.value,
                "after": after.value,
                "standard_error": after.standard_error,
                "samples": after.n,
            }
            if after.per_class:
                row["classes"] = {
                    str(c): [score, after.per_class.get(c, 0.0), after.counts.get(c)]
                    for c, score in sorted(before.per_class.items())
                }
            found["quality"][recipe.metric[len(found["quality"])]] = row
    return found


def compared(original: Model, pruned: Model, data: Data, recipe: Recipe) -> Fidelity:
    """Fidelity of the outputs on these inputs."""
    return fidelity(
        original,
        pruned,
        data,
        decoder=recipe.decoder,
        threads=recipe.threads,
        batch_size=recipe.batch_size,
    )


def scored(model: Model, labels: LabeledData, recipe: Recipe) -> list[Score]:
    """A model by the recipe's metrics."""
    metrics = [find_metric(name, metric_options(recipe)) for name in recipe.metric]
    measure(model, labels, metrics, threads=recipe.threads, batch_size=recipe.batch_size)
    return [m.result() for m in metrics]


def metric_options(recipe: Recipe) -> MetricOptions:
    """How labels and outputs belong together."""
    return MetricOptions(decoder=recipe.decoder, class_offset=recipe.class_offset)


def preprocess(recipe: Recipe) -> Preprocess:
    """How images become inputs."""
    return Preprocess(
        resize=recipe.resize,
        crop=recipe.crop,
        interp=recipe.interp,
        order=recipe.order,
        scale=recipe.scale,
        mean=recipe.mean,
        std=recipe.std,
        post=recipe.post,
        layout=recipe.layout,
    )


def guessed(data: Data, recipe: Recipe) -> bool:
    """Whether image files went into a float model by numbers that nobody gave."""
    floats = any(
        item.dtype.kind == "f" and data.inputs.image(name) is not None
        for name, item in data.inputs.items.items()
    )
    asked = preprocess(recipe)
    return (
        isinstance(data.source, Images)
        and floats
        and all(
            getattr(asked, n) == getattr(DEFAULT, n)
            for n in ("scale", "mean", "std", "post", "order")
        )
    )


def input_types(model: Model) -> dict[str, tuple[list[int | str | None], str]]:
    """Shape and onnxruntime's type string of every input, without opening a session."""
    found: dict[str, tuple[list[int | str | None], str]] = {}
    for info in model.proto.graph.input:
        if info.name in model.weights:
            continue
        kind = info.type.tensor_type
        if (
            not info.type.HasField("tensor_type")
            or kind.elem_type not in TensorProto.DataType.values()
        ):
            raise ModelError(
                "model-input",
                f"input {info.name!r} is not a tensor of a known type, so calibration and "
                "measurement cannot feed it",
            )
        dims: list[int | str | None] = [
            d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim
        ]
        found[info.name] = dims, f"tensor({TensorProto.DataType.Name(kind.elem_type).lower()})"
    return found


def _shapes(model: Model) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.weights.items()}


def _first_difference(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str:
    name = min(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    return f"{name!r} has shape {found.get(name)}, expected {expected.get(name)}"
