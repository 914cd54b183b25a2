"""Choice of the layers that are written as two before channels are chosen (`--low-rank`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnxprune.allocators.allocate import predict_damage
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, linears
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.errors import TargetError, plural
from onnxprune.ir.io import Model
from onnxprune.run.adapter import context_for
from onnxprune.run.analysis import analyze_for
from onnxprune.run.planning import PlanInputs, counted_constraints, decide
from onnxprune.run.recipe import Recipe
from onnxprune.run.splits import Splits
from onnxprune.run.stages import MODEL, Stages
from onnxprune.run.tolerance import UNREACHABLE
from onnxprune.search.base import part
from onnxprune.statistics.responses import collect_bases
from onnxprune.surgery.factoring import Basis, break_even, factor, factorable
from onnxprune.types import Plan

# Share of the variance that a factoring may lose where it saves a quarter of the layer's
# multiplications; other layers are not tried.
MOST_LOST = 0.1
LEAST_ROWS = 4  # responses per output
SAVING_RANK = 0.75
# A layer stays in two parts if these cost at most this share of it in a first plan.
MOST_COST = 0.9
TARGET = "macs=70%"  # of the first plan, if the recipe has none
SAMPLES = 128  # most inputs of the plans that choose layers
# Of the predicted damage. A smaller gain is within the error of the prediction: one of 1 % was a
# loss on held-out inputs of MobileNetV2.
LEAST_GAIN = 0.97
LEAST_RANK = 4  # at which a layer breaks even; narrower ones are not worth a further kernel
FACTORED = replace(MODEL, name="factored.onnx")
Layers = Mapping[str, tuple[Linear, Basis]]  # by the name of the output


def factor_stage(stages: Stages, analysis: Analysis, recipe: Recipe, splits: Splits) -> Analysis:
    """Return the analysis of the model in which chosen layers are written as two.

    The channels between both layers are coordinates of the original's responses, so that a plan
    prices ranks and widths alike, and later stages cut and refit ranks as channels. A first plan
    chooses the layers: one that keeps more than MOST_COST of its multiplications stays as it is.
    Without a gain over the plan of the original in predicted damage, all layers do.
    """
    data = stages.watch(splits.calibration)

    def work() -> Model:
        few = part(data, min(data.samples, SAMPLES))
        context = context_for(analysis, few, recipe, stages.progress)
        layers = _list_layers(analysis)
        tried = _find_low_rank(context, layers)
        if not tried:
            stages.detail(f"none of {plural(len(layers), 'layer')} in two")
            return analysis.model
        aim = recipe if recipe.target else recipe.but({"target": TARGET})
        trial = _analyze(analysis, factor(analysis.model, tried), recipe)
        first = _make_plan(stages, replace(context, analysis=trial), aim)
        saving = _list_saving(trial, first[0]) if first is not None else []
        chosen = {out: tried[out] for out in saving if out in tried}
        model = factor(analysis.model, chosen) if chosen else analysis.model
        if chosen:
            before = _make_plan(stages, context, aim)
            after = _make_plan(
                stages, replace(context, analysis=_analyze(analysis, model, recipe)), aim
            )
            if not _gains(before, after):
                chosen, model = {}, analysis.model
        stages.detail(f"{len(chosen)} of {plural(len(layers), 'layer')} in two")
        return model

    depends = {"model": analysis.digest, "data": data.fingerprint(), "recipe": recipe.plain()}
    factored = _analyze(analysis, stages.do("factor", work, depends, FACTORED), recipe)
    return analysis if factored.digest == analysis.digest else factored


def _analyze(original: Analysis, model: Model, recipe: Recipe) -> Analysis:
    """Return the analysis of a factored model at the sizes of the original's."""
    sizes = original.counted_at
    analysis = analyze_for(model, recipe).at(sizes.inputs, sizes.origin)
    return replace(analysis, origin=original)


def _make_plan(
    stages: Stages, context: Context, recipe: Recipe
) -> tuple[Plan, float | None] | None:
    """Return the plan of a recipe, and its predicted damage if the allocator predicts one.

    None if no plan reaches the target: in two parts, layers have other widths to round.
    """
    scores = CRITERIA.get(recipe.criterion)(context)
    feeds = next(context.required_data("--low-rank").batches(1))
    inputs = PlanInputs(feeds, lambda text: stages.progress(None, text))
    try:
        plan = decide(context, scores, recipe, inputs)
    except TargetError as problem:
        if problem.code != UNREACHABLE:
            raise
        return None
    constraints = counted_constraints(context, recipe)
    return plan, predict_damage(recipe.allocate, context, scores, constraints, plan)


def _gains(
    before: tuple[Plan, float | None] | None, after: tuple[Plan, float | None] | None
) -> bool:
    """Return whether a plan of a factored model is better than one of the original."""
    if before is None or after is None:
        return after is not None
    if before[1] is None or after[1] is None:
        return True
    return after[1] <= LEAST_GAIN * before[1]


def _list_layers(analysis: Analysis) -> dict[str, tuple[Linear, float]]:
    """Return output -> layer and rank at which it breaks even, where that is not too low."""
    layers = {}
    for layer in factorable(analysis):
        rank = break_even(*_count_columns(analysis, layer))
        if rank >= LEAST_RANK:
            layers[layer.out] = layer, rank
    return layers


def _count_columns(analysis: Analysis, layer: Linear) -> tuple[int, int]:
    """Return the number of values that an output of a layer sums over, and of outputs."""
    shape = analysis.model.weights[layer.weight.tensor].shape
    taps = layer.layout.taps(shape) if layer.layout.convolution else 1
    return layer.layout.inputs(shape) * taps, layer.layout.outputs(shape)


def _find_low_rank(context: Context, layers: Mapping[str, tuple[Linear, float]]) -> Layers:
    """Return the layers whose responses are nearly in a subspace of a rank that saves."""
    bases = collect_bases(
        context.analysis,
        [layer for layer, _ in layers.values()],
        context.statistics_data("--low-rank"),
        batch_size=context.batch_size,
        threads=context.threads,
        seed=context.seed,
    )
    found = {}
    for out, (layer, rank) in layers.items():
        variances = bases[out].variances
        # few responses are always in a subspace
        if bases[out].rows < LEAST_ROWS * len(variances):
            continue
        if variances[int(SAVING_RANK * rank) :].sum() <= MOST_LOST * variances.sum():
            found[out] = layer, bases[out]
    return found


def _list_saving(analysis: Analysis, plan: Plan) -> list[str]:
    """Return the outputs of the pairs of layers that cost enough less in a plan than one layer."""
    removed = analysis.removed(plan.kept)
    layers = linears(analysis)
    first = {layer.out: layer for layer in layers}
    saving = []
    for second in layers:
        layer = first.get(second.data)
        if layer is None or layer.out_ids is None:
            continue
        rank = int(analysis.keep(layer.out_ids, removed).sum())
        inputs, _ = _count_columns(analysis, layer)
        if layer.ids is not None:
            inputs = inputs // len(layer.ids) * int(analysis.keep(layer.ids, removed).sum())
        _, outputs = _count_columns(analysis, second)
        if second.out_ids is not None:
            outputs = int(analysis.keep(second.out_ids, removed).sum())
        if rank * (inputs + outputs) <= MOST_COST * inputs * outputs:
            saving.append(second.out)
    return saving
