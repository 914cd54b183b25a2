"""The type in which candidates of a latency target are timed: that of the written model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxprune.engines.base import Engine, random_feeds, static_inputs
from onnxprune.errors import UsageError
from onnxprune.ir.half import to_half
from onnxprune.ir.io import Model
from onnxprune.ir.quantize import is_quantized
from onnxprune.quantize.probe import quantize_to_time
from onnxprune.run.quantize_options import FP16, INT8
from onnxprune.run.recipe import Recipe

_PRECISION = {INT8: "int8", FP16: "f16"}


def probe_options(
    engine: Engine, model: Model, recipe: Recipe, feeds: Mapping[str, np.ndarray] | None
) -> dict[str, Any]:
    """Return the arguments of `Probe` that convert candidates as the recipe writes its model.

    Quantizing a candidate takes a fraction of the time for which it is measured.
    """
    # computed engines count the operations of the float graph
    if recipe.quantize is None or is_quantized(model) or "model" in engine.limits():
        return {}
    convert: Callable[[Model], Model] = to_half
    if recipe.quantize == INT8:
        feed = feeds or random_feeds(static_inputs(model, recipe.shape))

        def convert(candidate: Model) -> Model:
            return quantize_to_time(
                candidate,
                feed,
                recipe.quantize_form,
                recipe.quantize_exclude,
                engine=engine.name,
            )

    return {"convert": convert, "precision": _PRECISION[recipe.quantize]}


def check_timed_type(model: Model, recipe: Recipe) -> None:
    """Check that no float graph is timed for a latency target in int8.

    Raises
    ------
    UsageError
        The precision is int8, and neither the model nor the written one is.
    """
    timed = [str(target) for target in recipe.target if target.engine]
    if timed and recipe.precision == "int8" and recipe.quantize != INT8 and not is_quantized(model):
        raise UsageError(
            "precision-float",
            f"target {timed[0]} with --precision int8 would time a float model: pass --quantize "
            "int8, or a model that is quantized already",
        )
