"""Command compare: two models on the same labeled inputs, per class, with their costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.command import command
from onnxprune.cli.common import (
    emit,
    ignored_options,
    model_argument,
    recipe_from,
    recipe_options,
    say,
    shared,
)
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.metrics.compare import Comparison


@command(
    "onnxprune compare model.onnx model.pruned.onnx --labeled val/ --metric top1  # class by class",
)
@model_argument("a")
@model_argument("b")
@click.option(
    "--classes",
    metavar="N,N",
    help="Compare only these classes, by index. Default: all classes that occur.",
)
@click.option(
    "--names",
    type=click.Path(),
    metavar="FILE",
    help="Class names, one per line, starting with class 0.",
)
@recipe_options("data", "runtime", "evaluate", without=("flip",))
@ignored_options("flip")
@shared
def compare(
    a: str,
    b: str,
    classes: str | None,
    names: str | None,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Compare model B to model A on labeled inputs: costs, metrics and classes.

    Differences have standard errors. Labeled inputs are given by --labeled or --data; --metric is
    top1 by default.
    """
    from onnxprune.analysis.stored import count_stored
    from onnxprune.analysis.walk import analyze
    from onnxprune.ir.io import load
    from onnxprune.metrics.compare import compare as run
    from onnxprune.run.adapter import metric_options, open_labeled_inputs
    from onnxprune.run.detector import name_decoder

    recipe = recipe_from(recipe_file, values)
    labeled = recipe.labeled or recipe.data
    if labeled is None:
        raise UsageError("labeled-missing", "compare needs labeled inputs: pass --labeled PATH")
    # before the models are loaded, so that a wrong option fails at once
    chosen = _parse_classes(classes)
    class_names = _read_lines(names)
    first, second = load(a), load(b)
    # the default number is that of calibration inputs; a comparison uses all labels
    samples = recipe.samples if values.get("samples") is not None else None
    data = open_labeled_inputs(first, recipe, labeled, samples)
    recipe, head = name_decoder(first, data, recipe)
    for text in filter(None, (f"labels: {data.describe()}", head)):
        say(text)
    # both models are counted at the same lengths of dynamic axes
    shapes = {name: values.shape for name, values in next(iter(data.batches(1))).items()}
    pages, results = [], {}
    for metric in recipe.metric or ("top1",):
        result = run(
            first,
            second,
            data,
            metric,
            chosen,
            options=metric_options(recipe),
            names=class_names,
            cost=lambda m: count_stored(m, analyze(m, shapes=shapes).cost()),
            threads=recipe.compute_threads,
            batch_size=recipe.batch_size,
        )
        results[metric] = result.as_dict()
        pages.append(_page(result))
        for warning in result.warnings:
            say(f"warning: {metric}: {warning}")
    if as_json:
        emit(results)
    else:
        click.echo("\n\n".join(pages))


def _parse_classes(text: str | None) -> list[int] | None:
    """Return the class indices of a comma-separated list."""
    try:
        return [int(part) for part in text.split(",")] if text else None
    except ValueError:
        raise UsageError(
            "option-value", f"classes: {text!r} is not a list of class indices such as 0,3,7"
        ) from None


def _read_lines(path: str | None) -> list[str] | None:
    """Return the lines of a text file; None for None."""
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(
            "names-unreadable", f"cannot read class names {path}: {problem}"
        ) from problem


def _page(result: Comparison) -> str:
    """Return the comparison as a table."""
    from onnxprune.report.coco_table import coco_table
    from onnxprune.report.terminal import columns

    table = [("", "A", "B", "B - A", "standard error")]
    for name, a, b, difference, error in result.rows():
        is_count = isinstance(difference, int)
        gap = f"{difference:+,d}" if is_count else f"{difference:+.4f}"
        table.append((name, _format(a), _format(b), gap, "" if error is None else f"{error:.4f}"))
    page = columns(table)
    coco = coco_table(result.a.name, {"A": result.a.details, "B": result.b.details})
    if coco is not None:
        page += f"\n\n{coco.text()}"
    if result.mcnemar is not None:
        page += (
            f"\ncorrect in A only: {result.only_a}, in B only: {result.only_b}; probability of "
            f"such a split if the models were equal (McNemar): {result.mcnemar:.3g}"
        )
    return page


def _format(value: float) -> str:
    """Return a count with thousands separators, another figure with four decimals."""
    return f"{value:,d}" if isinstance(value, int) else f"{value:.4f}"
