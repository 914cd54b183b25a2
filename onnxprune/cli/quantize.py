"""Command `quantize`: int8 or float16, compared with the float model."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.cli.command import command
from onnxprune.cli.common import (
    emit,
    model_argument,
    output_options,
    quiet_option,
    recipe_from,
    recipe_options,
    say,
    shared,
)
from onnxprune.cli.progress import show_progress


@command(
    "onnxprune quantize model.onnx --data images/  # int8, for onnxruntime",
    "onnxprune quantize model.onnx --data images/ --quantize-form tensorrt",
    "onnxprune quantize model.onnx --data x.npz --max-divergence 0.05  # sensitive nodes in float",
)
@model_argument()
@output_options("Quantized model; MODEL.int8.onnx or MODEL.fp16.onnx next to MODEL by default.")
@recipe_options(
    "data", "runtime", "evaluate", "measure", "write", "quantize", also=("max_divergence",)
)
@quiet_option
@shared
def quantize(
    model: str,
    output: str | None,
    overwrite: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Quantize MODEL to int8 (default) or float16, and compare it with the float model.

    To prune and quantize, use `onnxprune optimize --quantize int8`.
    """
    from onnxprune.ir.io import load, save
    from onnxprune.report.quantized import format_quantization
    from onnxprune.run.adapter import open_data_for, open_labels
    from onnxprune.run.outputs import check_output, choose_output
    from onnxprune.run.quantization import (
        calibration_inputs,
        compare_models,
        judge_rows,
        quantize_for,
    )
    from onnxprune.run.quantize_options import INT8
    from onnxprune.run.splits import split_inputs
    from onnxprune.run.stages import Stages
    from onnxprune.run.validate import validate

    recipe = recipe_from(recipe_file, values).but({"candidate": "none"})
    recipe = recipe if recipe.quantize else recipe.but({"quantize": INT8})
    validate(recipe, bool(recipe.data))
    path = str(choose_output(output, model, f".{recipe.quantize}.onnx"))
    check_output(path, overwrite)
    source = load(model)
    splits = split_inputs(open_data_for(source, recipe), open_labels(source, recipe), recipe)
    data, name = calibration_inputs(recipe, splits), str(recipe.quantize)
    with show_progress() as listener:
        stages = Stages(listener)
        result, facts = stages.do(
            "quantize",
            lambda: quantize_for(source, recipe, data, stages.progress, recipe.max_divergence),
        )
        # before the measurement, which takes long and may fail
        save(result, path, external_data=recipe.external_data, overwrite=overwrite)
        rows = stages.do(
            "measure",
            lambda: compare_models(
                {"float": source, name: result}, recipe, splits, stages.progress
            ),
        )
    warnings = [*facts["warnings"], *judge_rows(rows, name, "float", recipe.max_divergence)]
    facts = {**facts, "output": path, "models": rows, "warnings": warnings}
    if as_json:
        emit(facts)
    else:
        click.echo(format_quantization(facts))
    for warning in warnings:
        say(f"warning: {warning}")
    say(f"written to {path}")
