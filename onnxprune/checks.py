"""Is the result right, and what is it worth: the masked oracle, fidelity to the original, metrics on labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import TensorProto

from onnxprune.analysis.groups import Analysis
from onnxprune.calibrate.data import Data, Preprocess, open_data, split
from onnxprune.errors import ModelError, VerificationError
from onnxprune.evaluate import find_metric
from onnxprune.evaluate.base import Options as MetricOptions
from onnxprune.evaluate.data import open_labelled
from onnxprune.evaluate.fidelity import fidelity
from onnxprune.evaluate.run import measure
from onnxprune.model.io import Model, digest
from onnxprune.recipe import Recipe
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
from onnxprune.types import Plan

HELD_OUT_PART, HELD_OUT_MOST = 4, 64  # one input for every so many calibration inputs, at most so many: for figures that nothing was chosen by
RESULT = "result_sha256"  # in a plan's decided_by: the model that its run wrote, where repair changed weights


def open_data_for(model: Model, recipe: Recipe) -> Data:
    """The data of a recipe, checked against the model's inputs: its calibration inputs and, where there are real ones, some more to hold out."""
    more = min(HELD_OUT_MOST, recipe.samples // HELD_OUT_PART) if recipe.data else 0
    return open_data(
        recipe.data, input_types(model), samples=recipe.samples + more, seed=recipe.seed, preprocess=preprocess(recipe), shapes=recipe.shape or None
    )  # fmt: skip


def held_out(data: Data) -> tuple[Data, Data | None]:
    """(for statistics, for the report): disjoint; None where there are too few inputs to keep some apart, or only synthetic ones."""
    batch = data.inputs.batch or 1
    keep = min(HELD_OUT_MOST, len(data.chosen) // (HELD_OUT_PART + 1))
    keep -= keep % batch
    if not keep or data.flipped or data.warning:
        return data, None
    return split(data, len(data.chosen) - keep, keep)


def oracle(analysis: Analysis, plan: Plan, pruned: Model, data: Data | None, recipe: Recipe) -> dict[str, Any]:
    """Figures of a cut model (before repair) against the masked original, on one input.

    Raises
    ------
    VerificationError
        It differs by more than the tolerance.
    """
    feeds = next(iter(data.batches(1))) if data else None
    found = verify(analysis, plan, pruned, feeds, tolerance=recipe.tolerance, seed=recipe.seed, threads=recipe.threads)
    if not found.ok:
        worst = max(found.outputs, key=lambda name: found.outputs[name])
        raise VerificationError(
            "verification-failed",
            f"the cut model differs from the masked original by {found.difference:.2g} of the largest value at output {worst!r}; allowed is {found.tolerance:.2g}"
            " (--tolerance)",
        )
    return found.as_dict()


def check(analysis: Analysis, plan: Plan, pruned: Model, data: Data | None, recipe: Recipe) -> dict[str, Any]:
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
        raise VerificationError("verification-failed", f"the model does not have the weights that the plan leaves: {_first_difference(_shapes(own), _shapes(pruned))}")
    if digest(pruned) not in (result, digest(own)):
        raise VerificationError(
            "verification-failed", f"the model is not the one that the plan's run wrote (sha256 {digest(pruned)[:12]}..., not {str(result)[:12]}...): its weights were changed after"
        )
    return {**figures, "repair": repair, RESULT: result}


def evaluated(original: Model, pruned: Model, apart: Data | None, recipe: Recipe) -> dict[str, Any]:
    """"fidelity": of the outputs on inputs that chose nothing; "quality": metric -> before, after, on labelled inputs."""
    found: dict[str, Any] = {"fidelity": {}, "quality": {}}
    if apart is not None:
        found["fidelity"] = fidelity(original, pruned, apart, decoder=recipe.decoder, threads=recipe.threads, batch_size=recipe.batch_size).as_dict()
    if recipe.labelled and recipe.metric:
        data = open_labelled(recipe.labelled, input_types(original), seed=recipe.seed, preprocess=preprocess(recipe), shapes=recipe.shape or None)
        scores = []
        for model in (original, pruned):
            metrics = [find_metric(name, metric_options(recipe)) for name in recipe.metric]
            measure(model, data, metrics, threads=recipe.threads, batch_size=recipe.batch_size)
            scores.append([m.result() for m in metrics])
        for name, before, after in zip(recipe.metric, *scores):
            found["quality"][name] = {"before": before.value, "after": after.value, "standard_error": after.standard_error, "samples": after.n}
            if after.per_class:
                found["quality"][name]["classes"] = {
                    str(c): [score, after.per_class.get(c, 0.0), after.counts.get(c)] for c, score in sorted(before.per_class.items())
                }
    return found


def metric_options(recipe: Recipe) -> MetricOptions:
    """How labels and outputs belong together."""
    return MetricOptions(decoder=recipe.decoder, class_offset=recipe.class_offset)


def preprocess(recipe: Recipe) -> Preprocess:
    """How images become inputs."""
    return Preprocess(
        resize=recipe.resize, crop=recipe.crop, interp=recipe.interp, order=recipe.order, scale=recipe.scale, mean=recipe.mean, std=recipe.std,
        post=recipe.post, layout=recipe.layout,
    )  # fmt: skip


def input_types(model: Model) -> dict[str, tuple[list[int | str | None], str]]:
    """Shape and onnxruntime's type string of every input, without opening a session."""
    found: dict[str, tuple[list[int | str | None], str]] = {}
    for info in model.proto.graph.input:
        if info.name in model.weights:
            continue
        kind = info.type.tensor_type
        if not info.type.HasField("tensor_type") or kind.elem_type not in TensorProto.DataType.values():
            raise ModelError("model-input", f"input {info.name!r} is not a tensor of a known type: calibration and measuring cannot feed it")
        dims: list[int | str | None] = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
        found[info.name] = dims, f"tensor({TensorProto.DataType.Name(kind.elem_type).lower()})"
    return found


def _shapes(model: Model) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.weights.items()}


def _first_difference(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    name = min(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    return f"{name!r} has shape {found.get(name)}, not {expected.get(name)}"
