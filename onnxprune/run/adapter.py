"""Adapter from a recipe to what the stages take: analysis, data, labels, context, constraints.

Every command builds these here, so that an option means the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnx import TensorProto

from onnxprune.allocators.base import Constraints
from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import Data, Preprocess, open_data
from onnxprune.data.labeled import LabeledData, open_labeled
from onnxprune.data.synthetic import Synthetic
from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions, multiple_of
from onnxprune.engines.devices import get_device
from onnxprune.errors import DataError, ModelError, unknown
from onnxprune.ir.dictated import input_shapes
from onnxprune.ir.example_sizes import declared_shapes
from onnxprune.ir.io import Model, Source
from onnxprune.ir.runtime import Session
from onnxprune.metrics.base import MetricOptions
from onnxprune.run.analysis import analyze_for, count_at_shapes
from onnxprune.run.quantize_options import INT8
from onnxprune.run.recipe import Recipe
from onnxprune.types import Plan

SAMPLES = 256  # inputs, if neither the recipe nor the size of the model says how many
HELD_OUT_PART = 4  # one held-out input per so many calibration inputs
HELD_OUT_MOST = 64
DEFAULT_ENGINE = "onnxruntime"  # whose multiple --round-to auto takes if no engine is measured
ROUND_TO = 8  # default of --round-to: the block of AVX2, half the block of AVX-512
_ANALYSIS_OPTIONS = ("freeze", "allow_mixing", "grouped", "untie")


def analyze_for_plan(model: Source, plan: Plan) -> Analysis:
    """Analyze a model with the options that a plan was made with.

    Raises
    ------
    UsageError
        The plan's options are not valid.
    """
    # an unknown option cannot be skipped: the groups would differ from those of the plan
    for name in plan.options:
        if name not in _ANALYSIS_OPTIONS:
            raise unknown("option of a plan", name, _ANALYSIS_OPTIONS, code="plan-key")
    options = {name: plan.options[name] for name in _ANALYSIS_OPTIONS if name in plan.options}
    return analyze_for(model, Recipe.of(options, "plan"))


def input_types(model: Model) -> dict[str, tuple[list[int | str | None], str]]:
    """Return shape and onnxruntime's type string of every input, without opening a session.

    Lengths that the weights dictate are numbers, so that data that do not fit are refused.

    Raises
    ------
    ModelError
        An input is not a tensor, or its type is unknown.
    """
    types: dict[str, tuple[list[int | str | None], str]] = {}
    shapes = input_shapes(model)
    for info in model.proto.graph.input:
        # up to IR version 3, initializers are inputs too
        if info.name in model.weights:
            continue
        # sequences, maps and optionals have no element type; types of a newer onnx have no name
        tensor = info.type.tensor_type
        is_tensor = info.type.HasField("tensor_type")
        if not is_tensor or tensor.elem_type not in TensorProto.DataType.values():
            raise ModelError(
                "model-input",
                f"input {info.name!r} is not a tensor of a known type, so calibration and "
                "measurement cannot feed it",
            )
        name = TensorProto.DataType.Name(tensor.elem_type).lower()
        types[info.name] = list(shapes.get(info.name, ())), f"tensor({name})"
    return types


def preprocess_of(recipe: Recipe) -> Preprocess:
    """Return the preprocessing of images."""
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
        preset=recipe.preprocess,
    )


def open_data_for(model: Model, recipe: Recipe) -> Data:
    """Open the data of a recipe: its calibration inputs, and if they are real, some to hold out.

    One part is held out for the report, and another one for selection if the recipe
    `selects_unlabeled`.
    """
    # random inputs say nothing about quality, so none are held out
    samples = recipe.samples or SAMPLES
    held_out = min(HELD_OUT_MOST, samples // HELD_OUT_PART) if recipe.data else 0
    # one draw for all parts, which `split_inputs` divides: so no input is in two of them
    parts = 2 if selects_unlabeled(recipe) else 1
    return open_inputs(model, recipe, samples + parts * held_out)


def open_inputs(
    model: Model,
    recipe: Recipe,
    samples: int | None = None,
    path: str | tuple[str, ...] | None = None,
) -> Data:
    """Open unlabeled inputs.

    Parameters
    ----------
    samples
        At most so many; by default as the recipe says.
    path
        Instead of the recipe's data.
    """
    return open_data(
        path if path is not None else recipe.data,
        input_types(model),
        samples=samples or recipe.samples or SAMPLES,
        seed=recipe.seed,
        preprocess=preprocess_of(recipe),
        shapes=recipe.shape or None,
        batch_axes=recipe.batch_axis or None,
        model=model,
    )


def selects_unlabeled(recipe: Recipe) -> bool:
    """Return whether models are compared on unlabeled inputs that fit nothing."""
    # commands that do not resolve "auto" draw the same inputs as a run without candidates
    named = recipe.candidate not in ((), ("auto",))
    return recipe.max_divergence is not None or (named and not recipe.metric)


def check_synthetic(model: Model, data: Data) -> None:
    """Run a model once on random inputs, if these are in use and may not fit.

    Random values fit where all axes are fixed and all inputs are floats.

    Raises
    ------
    DataError
        The model does not run on them.
    """
    items = data.inputs.items.values()
    # random integers may be indices out of range, and example lengths may contradict each other
    if not isinstance(data.source, Synthetic) or all(
        item.dtype.kind == "f" and all(isinstance(d, int) for d in item.sample_shape())
        for item in items
    ):
        return
    try:
        session = Session(model)
    except ModelError:  # commands that need no run still work, and the others say so
        return
    try:
        session.run(next(iter(data.batches(1))))
    except ModelError as problem:
        raise DataError(
            "data-synthetic",
            "the model does not run on random inputs, pass --data with real ones, or --shape if "
            f"only their lengths do not fit ({problem})",
        ) from problem


def count_at(analysis: Analysis, data: Data | LabeledData | None, recipe: Recipe) -> Analysis:
    """Return the analysis with costs counted at the shapes of the first input, for one sample.

    The data honor `--shape`; without real data their shapes are example lengths. Reads an input
    only if the model has dynamic axes.
    """
    analysis = count_at_shapes(analysis, recipe)
    declared = declared_shapes(analysis.model)
    is_static = all(isinstance(d, int) for shape in declared.values() for d in shape)
    if data is None or is_static:
        return analysis
    feeds = next(iter(data.batches(1)))
    shapes = {name: values.shape for name, values in feeds.items()}
    origin = "calibration data"
    if isinstance(data, Data) and isinstance(data.source, Synthetic):
        # the shapes of synthetic inputs are --shape where it is given, example lengths elsewhere
        origin = analysis.counted_at.origin_of_lengths
    return analysis.at(shapes, origin)


def open_labels(model: Model, recipe: Recipe) -> LabeledData | None:
    """Open the labeled inputs of a recipe with a metric; None if it has no labels or no metric."""
    if not (recipe.labeled and recipe.metric):
        return None
    return open_labeled_inputs(model, recipe, recipe.labeled)


def open_labeled_inputs(
    model: Model, recipe: Recipe, path: str | tuple[str, ...], samples: int | None = None
) -> LabeledData:
    """Open labeled inputs, at most `samples` of them if given.

    Raises
    ------
    DataError
        There are several paths, or the inputs do not fit.
    """
    if not isinstance(path, str):
        raise DataError(
            "data-kind",
            f"labeled inputs are one file or one folder, not {len(path)} paths: {', '.join(path)}",
        )
    return open_labeled(
        path,
        input_types(model),
        samples=samples,
        seed=recipe.seed,
        preprocess=preprocess_of(recipe),
        shapes=recipe.shape or None,
        batch_axes=recipe.batch_axis or None,
        model=model,
    )


def metric_options(recipe: Recipe) -> MetricOptions:
    """Return the options that all metrics share."""
    return MetricOptions(decoder=recipe.decoder, class_offset=recipe.class_offset)


def context_for(
    analysis: Analysis,
    data: Data | None,
    recipe: Recipe,
    progress: Callable[[float, str], None] = lambda share, detail: None,
) -> Context:
    """Return the context of criteria, repairs and searches."""
    return Context(
        analysis,
        data,
        seed=recipe.seed,
        threads=recipe.compute_threads,
        batch_size=recipe.batch_size,
        flip=recipe.flip,
        progress=progress,
    )


def constraints_for(
    recipe: Recipe, budgets: Mapping[str, float], depthwise: bool = False, **more: Any
) -> Constraints:
    """Return the constraints of a recipe on its plan.

    Parameters
    ----------
    budgets
        Cost -> the most that may remain, see `counted_budgets`.
    depthwise
        Whether the model has depthwise convolutions, see `channel_multiple`.
    more
        Fields of `Constraints` that do not follow from the recipe.
    """
    return Constraints(
        budgets=budgets,
        round_to=channel_multiple(recipe, depthwise),
        half_block=follows_engine(recipe),
        floor=recipe.floor,
        max_fraction=recipe.max_fraction,
        ratios=recipe.ratio,
        # a ratio is exact unless the user asks for multiples
        ratio_multiple=1 if recipe.round_to is None else None,
        blocks=recipe.blocks,
        **more,
    )


def counted_budgets(recipe: Recipe, original: Mapping[str, int]) -> dict[str, float]:
    """Return cost -> the most that may remain, for all targets but latencies."""
    # a latency's limit needs the original's time, which a probe measures when the plan is made
    return {
        target.cost: target.ceiling(original[target.cost])
        for target in recipe.target
        if not target.engine
    }


def channel_multiple(recipe: Recipe, depthwise: bool = False) -> int:
    """Return the number that kept channel counts are multiples of.

    If blocks decide, it is that of the device; without one, the largest multiple of the engines
    with a latency target, or if there is none, of those that are measured, or without any,
    onnxruntime's. That of depthwise convolutions counts if the model has some. The precision is
    that of the written model.
    """
    if not follows_engine(recipe):
        return recipe.round_to if isinstance(recipe.round_to, int) else ROUND_TO
    precision = INT8 if recipe.quantize == INT8 else recipe.precision
    if recipe.device is not None:
        return get_device(recipe.device).channel_multiple(precision)
    names = [target.engine for target in recipe.target if target.engine]
    names = names or engines_of(recipe) or [DEFAULT_ENGINE]
    kinds = (False, True) if depthwise else (False,)
    return max(multiple_of(ENGINES.get(name), precision, kind) for name in names for kind in kinds)


def follows_engine(recipe: Recipe) -> bool:
    """Return whether widths follow the block size of the device or the engine.

    They do if the user asks for it, and by default with a device or a latency target.
    """
    if recipe.round_to is None:
        return recipe.device is not None or any(target.engine for target in recipe.target)
    return recipe.round_to == "auto"


def engines_of(recipe: Recipe) -> list[str]:
    """Return the engines with a latency target, then those that are measured, each once.

    Layers are timed and explained on the first one.
    """
    targeted = [target.engine for target in recipe.target if target.engine]
    return list(dict.fromkeys((*targeted, *recipe.engine)))


def engine_options(recipe: Recipe) -> EngineOptions:
    """Return how engines compile and run models."""
    return EngineOptions(
        threads=recipe.bench_threads,
        precision=recipe.precision,
        cores=recipe.pin,
        shapes=recipe.shape,
    )
