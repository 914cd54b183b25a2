"""Commands sensitivity and select: measure cuts of single groups, and choose the groups to cut."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxprune.cli.command import command
from onnxprune.cli.common import emit, model_argument, recipe_from, recipe_options, say, shared
from onnxprune.errors import DataError, UsageError

if TYPE_CHECKING:
    from onnxprune.analysis.groups import Analysis
    from onnxprune.run.recipe import Recipe
    from onnxprune.search.sensitivity import Sweep

F = TypeVar("F", bound=Callable[..., Any])


@command(
    "onnxprune sensitivity model.onnx --data images/ -o sens.jsonl  # measure every group",
)
@model_argument()
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="OUT",
    help="JSON lines file to append results to; results in it are not measured again. Default: "
    "MODEL.sensitivity.jsonl.",
)
@click.option(
    "--rates",
    default="0.25,0.5,0.75",
    show_default=True,
    metavar="X,X",
    help="Shares of each group to remove.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME",
    help="Measure only this group. Default: all groups.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of processes (extra cluster).",
)
@click.option(
    "--cluster",
    default="",
    metavar="NAME",
    help="ray or dask on this machine, or a running one as ray:ADDRESS or dask:ADDRESS (extra "
    "cluster).",
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
    """Cut each group of MODEL alone at several rates and measure the results.

    Measured are parameters, MACs, time and quality: with --labeled the metrics and classes, else
    the agreement with the original outputs.
    """
    from onnxprune.search.journal import Journal
    from onnxprune.search.sensitivity import jobs_of, sweep_key
    from onnxprune.search.sensitivity import sensitivity as run

    recipe = recipe_from(recipe_file, values)
    shares = _parse_rates(rates)
    path = output or str(Path(model).with_suffix(".sensitivity.jsonl"))
    Journal(path)  # a file that holds something else is an error before the analysis
    analysis, sweep = _prepare(model, recipe, not no_time, workers)
    for name in groups:
        analysis.group(name)  # an unknown name is an error before anything is measured
    records = run(
        sweep,
        jobs_of(sweep, analysis, shares, groups or None),
        # the key keeps records of another model or of other data in the file from being reused
        Journal(path, sweep_key(sweep)),
        workers=workers,
        cluster=cluster,
        progress=say,
    )
    if as_json:
        emit([dict(r) for r in records])
        return
    click.echo(_format_table(records))
    say(f"written to {path}")


def _parse_rates(text: str) -> list[float]:
    """Return the rates of a comma-separated list."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            "option-value", f"rates: {text!r} is not a list of shares such as 0.25,0.5"
        ) from None


def _format_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the records as a table, one row per cut."""
    from onnxprune.report.terminal import amount, columns

    table: list[tuple[str, ...]] = [
        ("group", "number", "rate", "kept", "quality", "params saved", "MACs saved", "ms")
    ]
    for r in records:
        cut = ("original model", "", "", "")
        # the record of the unpruned model has no group
        if r["group"]:
            kept = f"{r['kept']} of {r['size']}"
            cut = (r["group"], str(r["index"]), f"{r['rate']:g}", kept)
        saved = amount(r["saved_params"]), amount(r["saved_macs"])
        ms = f"{r['timing']['inference_ms']:.3f}" if r["timing"] else ""
        table.append((*cut, f"{r['quality']:.4f}", *saved, ms))
    return columns(table)


def _prepare(model: str, recipe: Recipe, time: bool, workers: int) -> tuple[Analysis, Sweep]:
    """Return the analysis and the inputs that all jobs share."""
    from onnxprune.criteria import CRITERIA
    from onnxprune.run.adapter import (
        analyze_for,
        channel_multiple,
        check_synthetic,
        context_for,
        count_at,
        metric_options,
        open_data_for,
        open_labeled_inputs,
    )
    from onnxprune.run.detector import name_decoder
    from onnxprune.search.sensitivity import Sweep

    # each job loads the model from its path, possibly in another process
    if not Path(model).is_file():
        raise DataError("model-missing", f"no model at {model}: the file does not exist")
    analysis = analyze_for(model, recipe)
    data = open_data_for(analysis.model, recipe)
    check_synthetic(analysis.model, data)
    analysis = count_at(analysis, data, recipe)
    # with labels, quality is their metric, for which the unlabeled inputs do not matter
    if data.warning and not recipe.labeled:
        say(f"warning: {data.warning}")
    context = context_for(analysis, data, recipe)
    # scores only rank the channels of one group, quality is measured; l2 takes no pass over data
    scores = CRITERIA.get("l2" if recipe.criterion == "auto" else recipe.criterion)(context)
    labeled = None
    if recipe.labeled:
        labeled = open_labeled_inputs(analysis.model, recipe, recipe.labeled)
        recipe, head = name_decoder(analysis.model, labeled, recipe)
        if head:
            say(head)
    sweep = Sweep(
        model,
        analysis.options,
        scores,
        context.gate_data("sensitivity"),
        labeled,
        recipe.metric or (("top1",) if labeled else ()),
        metric_options(recipe),
        time,
        min(channel_multiple(recipe), 2),
        # workers share the CPUs
        recipe.threads or max(1, recipe.compute_threads // workers),
        recipe.batch_size,
        analysis.digest,
    )
    return analysis, sweep


# list -> (number of groups by default, what the list is by)
LISTS = {"params": (6, "parameters"), "flops": (5, "MACs"), "latency": (0, "measured time")}


def list_options(command: F) -> F:
    """Add the size and the exponent of each list that `select` takes groups from."""
    # decorators apply from the last to the first
    for name, (_, cost) in reversed(LISTS.items()):
        command = click.option(
            f"--{name}-map",
            type=float,
            default=20.0,
            show_default=True,
            metavar="X",
            help=f"Exponent of the quality in the list by {cost}.",
        )(command)
    for name, (count, cost) in reversed(LISTS.items()):
        command = click.option(
            f"--{name}-layers",
            type=click.IntRange(0),
            default=count,
            show_default=True,
            metavar="N",
            help=f"Number of groups from the list by {cost}.",
        )(command)
    return command


@command(
    "onnxprune select sens.jsonl  # ratios for onnxprune optimize",
)
@click.argument("records", metavar="FILE", type=click.Path())
@list_options
@shared
def select(records: str, as_json: bool, **how: Any) -> None:
    """Choose groups and rates from the sensitivities in FILE, by saving times quality^exponent."""
    from onnxprune.files import json_lines
    from onnxprune.report.terminal import columns
    from onnxprune.search.selection import Selection
    from onnxprune.search.selection import select as run

    if not Path(records).is_file():
        place = shlex.quote(str(records))
        raise DataError(
            "sensitivities-missing",
            f"no sensitivities at {records}; write them: onnxprune sensitivity MODEL -o {place}",
        )
    measured = [r for r in json_lines(records) if "group" in r and "quality" in r]
    # keys begin with the hash of the sweep's inputs
    if len({str(r.get("key", "")).partition(":")[0] for r in measured}) > 1:
        raise UsageError(
            "sensitivities-mixed",
            f"{records} has sensitivities of several models, data or settings; write each to a "
            "file of its own",
        )
    choices = run(measured, Selection(**how))
    if as_json:
        emit([vars(c) for c in choices])
        return
    table = [("group", "number", "rate", "lists")]
    table += [(c.group, str(c.index), f"{c.rate:g}", ", ".join(c.lists)) for c in choices]
    click.echo(columns(table))
    # as options of `optimize`, quoted for a shell
    click.echo(" ".join(f"--ratio {shlex.quote(f'{c.group}={c.rate:g}')}" for c in choices))
