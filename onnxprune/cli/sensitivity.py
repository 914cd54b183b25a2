"""sensitivity and select: what each group alone costs and saves, and which ones to cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.common import emit, model_argument, recipe_from, recipe_options, say, shared
from onnxprune.errors import DataError, UsageError

if TYPE_CHECKING:
    from onnxprune.analysis.groups import Analysis
    from onnxprune.run.recipe import Recipe
    from onnxprune.search.sensitivity import Sweep


@click.command()
@model_argument()
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="OUT",
    help="JSON lines, appended to; what is there already is not measured again. MODEL.sensitivity.jsonl by default.",
)
@click.option(
    "--rates",
    default="0.25,0.5,0.75",
    show_default=True,
    metavar="X,X",
    help="Shares of each group that go.",
)
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", help="Only these groups; all by default."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes (extra cluster).",
)
@click.option(
    "--cluster",
    default="",
    metavar="NAME",
    help="ray or dask, on this machine, or ray:ADDRESS, dask:ADDRESS (extra cluster).",
)
@click.option("--no-time", is_flag=True, help="Do not time inferences.")
@recipe_options("analyze", "data", "runtime", "score", "evaluate")
@shared
def sensitivity(
    model: str,
    output: str | None,
    rates: str,
    groups: tuple[str, ...],
    workers: int,
    cluster: str,
    no_time: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Cut each group of MODEL alone at a few rates and measure: quality, metrics and classes with --labeled, parameters, MACs, time."""
    from onnxprune.report.terminal import amount, columns
    from onnxprune.search.journal import Journal
    from onnxprune.search.sensitivity import jobs_of, sweep_key
    from onnxprune.search.sensitivity import sensitivity as run

    recipe = recipe_from(recipe_file, values)
    try:
        shares = [float(part) for part in rates.split(",")]
    except ValueError:
        raise UsageError(
            "option-value", f"rates: {rates!r} is not a list of shares such as 0.25,0.5"
        ) from None
    analysis, sweep = _sweep(model, recipe, not no_time)
    for name in groups:
        analysis.group(name)
    place = output or str(Path(model).with_suffix(".sensitivity.jsonl"))
    records = run(
        sweep,
        jobs_of(sweep, analysis, shares, groups or None),
        Journal(place, sweep_key(sweep)),
        workers=workers,
        cluster=cluster,
        progress=say,
    )
    if as_json:
        emit([dict(r) for r in records])
        return
    table: list[tuple[str, ...]] = [
        ("group", "number", "rate", "kept", "quality", "params saved", "MACs saved", "ms")
    ]
    for r in records:
        ms = f"{r['timing']['inference_ms']:.3f}" if r["timing"] else ""
        of = (
            (r["group"], str(r["index"]), f"{r['rate']:g}", f"{r['kept']} of {r['size']}")
            if r["group"]
            else ("whole model", "", "", "")
        )
        table.append(
            (*of, f"{r['quality']:.4f}", amount(r["saved_params"]), amount(r["saved_macs"]), ms)
        )
    click.echo(columns(table))
    say(f"written to {place}")


def _sweep(model: str, recipe: Recipe, time: bool) -> tuple[Analysis, Sweep]:
    """The analysis, and what all jobs share."""
    from onnxprune.criteria import CRITERIA
    from onnxprune.criteria.base import Context
    from onnxprune.data.labeled import open_labeled
    from onnxprune.run.evaluation import input_types, metric_options, open_data_for, preprocess
    from onnxprune.run.pipeline import analyzed
    from onnxprune.run.planning import multiple
    from onnxprune.search.sensitivity import Sweep

    if not Path(model).is_file():
        raise DataError("model-missing", f"no model at {model}: the file does not exist")
    analysis = analyzed(model, recipe)
    data = open_data_for(analysis.model, recipe)
    if data.warning and not recipe.labeled:
        say(f"warning: {data.warning}")
    context = Context(analysis, data, recipe.seed, recipe.threads, recipe.batch_size)
    scores = CRITERIA.get("l2" if recipe.criterion == "auto" else recipe.criterion)(context)
    labeled = None
    if recipe.labeled:
        labeled = open_labeled(
            recipe.labeled,
            input_types(analysis.model),
            seed=recipe.seed,
            preprocess=preprocess(recipe),
            shapes=recipe.shape or None,
        )
    metrics = recipe.metric or (("top1",) if labeled else ())
    how = min(multiple(recipe), 2)
    sweep = Sweep(
        model,
        analysis.options,
        scores,
        context.gate_data("sensitivity"),
        labeled,
        metrics,
        metric_options(recipe),
        time,
        how,
        recipe.threads,
        recipe.batch_size,
        analysis.digest,
    )
    return analysis, sweep


@click.command()
@click.argument("records", metavar="FILE", type=click.Path())
@click.option(
    "--params-layers",
    type=click.IntRange(0),
    default=6,
    show_default=True,
    metavar="N",
    help="Groups from the list by parameters.",
)
@click.option(
    "--flops-layers",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    metavar="N",
    help="Groups from the list by MACs.",
)
@click.option(
    "--latency-layers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Groups from the list by measured time.",
)
@click.option(
    "--params-map",
    type=float,
    default=20.0,
    show_default=True,
    metavar="X",
    help="Exponent of the quality in the list by parameters.",
)
@click.option(
    "--flops-map",
    type=float,
    default=20.0,
    show_default=True,
    metavar="X",
    help="Exponent of the quality in the list by MACs.",
)
@click.option(
    "--latency-map",
    type=float,
    default=20.0,
    show_default=True,
    metavar="X",
    help="Exponent of the quality in the list by time.",
)
@shared
def select(records: str, as_json: bool, **how: Any) -> None:
    """Choose groups and rates from the sensitivities in FILE: what each saves, times its quality to a power."""
    from onnxprune.report.terminal import columns
    from onnxprune.search.journal import rows
    from onnxprune.search.selection import Selection
    from onnxprune.search.selection import select as run

    if not Path(records).is_file():
        raise DataError(
            "sensitivities-missing",
            f"no sensitivities at {records}; write them: onnxprune sensitivity MODEL -o {records}",
        )
    found = [r for r in rows(Path(records)) if "group" in r and "quality" in r]
    if len({str(r.get("key", "")).partition(":")[0] for r in found}) > 1:
        raise UsageError(
            "sensitivities-mixed",
            f"{records} holds sensitivities of several models, data or settings; write each to a file of its own",
        )
    choices = run(found, Selection(**how))
    if as_json:
        emit([vars(c) for c in choices])
        return
    click.echo(
        columns(
            [
                ("group", "number", "rate", "lists"),
                *((c.group, str(c.index), f"{c.rate:g}", ", ".join(c.lists)) for c in choices),
            ]
        )
    )
    click.echo("--ratio " + " --ratio ".join(f"'{c.group}={c.rate:g}'" for c in choices))
