"""compare: two models on the same labels, class by class, beside what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.common import emit, model_argument, recipe_from, recipe_options, say, shared
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.metrics.compare import Comparison


@click.command()
@model_argument("a")
@model_argument("b")
@click.option(
    "--classes",
    metavar="N,N",
    help="Compare these classes only, by index; all that occur by default.",
)
@click.option(
    "--names", type=click.Path(), metavar="FILE", help="Class names, one a line, class 0 first."
)
@recipe_options("data", "runtime", "evaluate")
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
    """Compare B to A on labeled inputs: costs, the metric, each class; differences with their standard errors.

    Labeled inputs are given by --labeled or --data; --metric is top1 by default.
    """
    from onnxprune.analysis.walk import analyze
    from onnxprune.data.labeled import open_labeled
    from onnxprune.ir.io import load
    from onnxprune.metrics.compare import compare as run
    from onnxprune.run.evaluation import input_types, metric_options, preprocess

    recipe = recipe_from(recipe_file, values)
    where = recipe.labeled or recipe.data
    if where is None:
        raise UsageError("labeled-missing", "compare needs labeled inputs: pass --labeled PATH")
    chosen = _indices(classes)
    known = _lines(names)
    first, second = load(a), load(b)
    samples = recipe.samples if values.get("samples") is not None else None
    data = open_labeled(
        where,
        input_types(first),
        samples=samples,
        seed=recipe.seed,
        preprocess=preprocess(recipe),
        shapes=recipe.shape or None,
    )
    pages, found = [], {}
    for metric in recipe.metric or ("top1",):
        result = run(
            first,
            second,
            data,
            metric,
            chosen,
            options=metric_options(recipe),
            names=known,
            cost=lambda m: analyze(m).cost(),
            threads=recipe.threads,
            batch_size=recipe.batch_size,
        )
        found[metric] = result.as_dict()
        pages.append(_page(result))
        for warning in result.warnings:
            say(f"warning: {metric}: {warning}")
    if as_json:
        emit(found)
    else:
        click.echo("\n\n".join(pages))


def _indices(text: str | None) -> list[int] | None:
    try:
        return [int(part) for part in text.split(",")] if text else None
    except ValueError:
        raise UsageError(
            "option-value", f"classes: {text!r} is not a list of class indices such as 0,3,7"
        ) from None


def _lines(path: str | None) -> list[str] | None:
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
    from onnxprune.report.terminal import columns

    table = [("", "A", "B", "B - A", "standard error")]
    for name, a, b, difference, error in result.rows():
        table.append(
            (
                name,
                _figure(a),
                _figure(b),
                f"{difference:+,d}" if isinstance(difference, int) else f"{difference:+.4f}",
                "" if error is None else f"{error:.4f}",
            )
        )
    page = columns(table)
    if result.mcnemar is not None:
        page += f"\nright by A only: {result.only_a}, by B only: {result.only_b}; chance of such a split if the models were equal: {result.mcnemar:.3g}"
    return page


def _figure(value: float) -> str:
    return f"{value:,d}" if isinstance(value, int) else f"{value:.4f}"
