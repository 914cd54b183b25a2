"""Analysis of a model with the options of a recipe; imports nothing that measures or prunes."""

from __future__ import annotations

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.data.input_shapes import apply_overrides
from onnxprune.errors import UsageError
from onnxprune.ir.example_sizes import declared_shapes
from onnxprune.ir.io import Source, load
from onnxprune.run.recipe import Recipe


def analyze_for(model: Source, recipe: Recipe) -> Analysis:
    """Analyze a model with the options of a recipe.

    Raises
    ------
    UsageError
        The recipe is strict and an operator has no rule.
    """
    analysis = analyze(
        load(model),
        freeze=recipe.freeze,
        allow_mixing=recipe.allow_mixing,
        grouped=recipe.grouped,
        untie=recipe.untie,
    )
    if recipe.strict:
        without_rule = [f for f in analysis.frozen if f.reason.startswith("no rule")]
        for frozen in without_rule[:1]:
            raise UsageError(
                "strict",
                f"{frozen.node} ({frozen.op}): {frozen.reason}; omit --strict to freeze the axes "
                "it touches",
            )
    return analysis


def count_at_shapes(analysis: Analysis, recipe: Recipe) -> Analysis:
    """Return the analysis with costs counted at the shapes of a recipe.

    Raises
    ------
    UsageError
        A shape names no input or contradicts the model.
    """
    # only for its errors: the analysis ignores shapes that fit no input
    apply_overrides(declared_shapes(analysis.model), recipe.shape)
    return analysis.at(recipe.shape) if recipe.shape else analysis
