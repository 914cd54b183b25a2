"""Command bench: measure the latency of models, interleaved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.command import command
from onnxprune.cli.common import emit, recipe_from, recipe_options, say, shared
from onnxprune.errors import plural

if TYPE_CHECKING:
    from onnxprune.engines.bench import BenchReport
    from onnxprune.engines.measure import Ratio
    from onnxprune.engines.measurement import Measurement

_HEADER = (
    "engine",
    "model",
    "median ms",
    "min",
    "p99",
    "IQR",
    "speed-up",
    "95 % interval",
    "output error",
    "peak MB",
)


@command(
    "onnxprune bench model.onnx model.pruned.onnx  # latency of both, measured in turns",
)
@click.argument("models", nargs=-1, type=click.Path())
@click.option(
    "--collect",
    type=click.Path(),
    metavar="FOLDER",
    help="Show the results of a deployment bundle in FOLDER; measure nothing.",
)
@click.option(
    "--ssh",
    metavar="USER@HOST",
    help="Measure on this Jetson: copy a bundle to it, run it, fetch the results.",
)
@click.option("--layers", is_flag=True, help="Also time each layer.")
@click.option("--threads", "former_threads", hidden=True)  # the name in earlier releases
@recipe_options("measure", "runtime", without=("batch_size", "threads"))
@shared
def bench(
    models: tuple[str, ...],
    collect: str | None,
    ssh: str | None,
    layers: bool,
    recipe_file: str | None,
    as_json: bool,
    former_threads: str | None,
    **values: Any,
) -> None:
    """Measure the latency of MODELS, interleaved; speed-ups are relative to the first one."""
    from onnxprune.cli.handoff import run_over_ssh, show_results

    if values["bench_threads"] is None:
        values["bench_threads"] = former_threads
    recipe = recipe_from(recipe_file, values)
    if collect:
        from onnxprune.deploy.handoff import collect as read_results

        show_results(read_results(collect), as_json)
        _write_table(Path(collect))
        return
    if ssh:
        show_results(run_over_ssh(models, ssh, recipe), as_json)
        return
    # not checked by click, because --collect takes no models
    if not models:
        raise click.UsageError("Missing argument 'MODELS...'.")
    from onnxprune.engines.bench import bench as run
    from onnxprune.engines.measure import Schedule
    from onnxprune.run.adapter import engine_options

    result = run(
        models,
        recipe.engine,
        options=engine_options(recipe),
        schedule=Schedule(seconds=recipe.seconds),
        layers=layers,
        seed=recipe.seed,
        progress=say,
    )
    if as_json:
        emit(result.as_dict())
    else:
        click.echo(_format_models(result))
        if layers and result.layers:
            click.echo(f"\n{_format_layers(result)}")
    for line in _describe_devices(result):
        say(line)
    # on stderr: stdout holds nothing but the table or JSON
    for warning in result.warnings:
        say(f"warning: {warning}")


def _write_table(folder: Path) -> None:
    """Write the table of latencies if the bundle timed layers, and print what it is good for."""
    from onnxprune.deploy.layers import INDEX, write_table
    from onnxprune.engines.cost.table import SUFFIX

    if not (folder / INDEX).is_file():
        return
    path = folder.with_name(folder.name + SUFFIX)
    table = write_table(folder, path)
    say(f"written to {path}: {table.describe_error()}")
    say(f"next: onnxprune optimize MODEL --target latency.table:{path}=1.5x")


def _format_models(result: BenchReport) -> str:
    """Return the table of models by engine; device memory only if an engine reports it."""
    from onnxprune.report.text import columns

    # the first model of an engine has no ratio: it is what the others are compared with
    ratios = {
        (engine, row.contender): row for engine, rows in result.ratios.items() for row in rows
    }
    on_device = any(m.device_memory_bytes is not None for m in result.measurements)
    header: tuple[str, ...] = (*_HEADER, "device MB") if on_device else _HEADER
    table = [header]
    for measurement in result.measurements:
        ratio = ratios.get((measurement.engine, measurement.model))
        row = _format_measurement(measurement, ratio)
        if on_device:
            row = (*row, _to_megabytes(measurement.device_memory_bytes))
        table.append(row)
    compared = any(m.difference is not None for m in result.measurements)
    return "\n".join((columns(table, left=2), *_explain_columns(result, compared)))


def _explain_columns(result: BenchReport, compared: bool) -> Iterator[str]:
    """Yield what the columns mean."""
    threads = sorted({m.threads for m in result.measurements})
    counts = " or ".join(plural(n, "thread") for n in threads)
    yield f"CPU engines compute on {counts} (--bench-threads)"
    if any(result.ratios.values()):
        yield "speed-up: over the first model, median of pairs measured in turns"
    if compared:
        yield (
            "output error: distance of the engine's outputs from onnxruntime's for the same model, "
            "relative to the largest output"
        )


def _format_measurement(measurement: Measurement, ratio: Ratio | None) -> tuple[str, ...]:
    """Return one row of the table of models."""
    times = (
        measurement.median_ms,
        measurement.min_ms,
        measurement.p99_ms,
        measurement.iqr_ms,
    )
    speedup, interval = "", ""
    if ratio:
        speedup, interval = f"{ratio.median:.2f}x", f"{ratio.low:.2f} to {ratio.high:.2f}"
    difference = measurement.difference
    return (
        measurement.engine,
        measurement.model,
        *(f"{time:.3f}" for time in times),
        speedup,
        interval,
        "" if difference is None else f"{difference:.1e}",
        _to_megabytes(measurement.peak_memory_bytes),
    )


def _describe_devices(result: BenchReport) -> list[str]:
    """Return a line per engine on another machine: what its times depend on."""
    lines = {}
    for measurement in result.measurements:
        device = measurement.device
        if device is None:
            continue
        facts = [f"{device['host']} ({device['board'] or device['machine']})"]
        if device["power_mode"]:
            facts.append(f"power mode {device['power_mode']}")
        for key, unit in (("clock_mhz", "MHz"), ("temperature", "degrees C")):
            if device[key]:
                low, high = device[key]
                facts.append(f"{low:.0f} to {high:.0f} {unit}")
        lines[measurement.engine] = f"{measurement.engine}: {', '.join(facts)}"
    return list(lines.values())


def _format_layers(result: BenchReport) -> str:
    """Return the table of layers, with the time of each in every model."""
    from onnxprune.report.text import columns

    models = list(dict.fromkeys(measurement.model for measurement in result.measurements))
    table: list[tuple[str, ...]] = [("engine", "tensor", "op", *models)]
    for row in result.layers:
        times = [row.times_ms.get(model) for model in models]
        cells = ["" if time is None else f"{time:.4f}" for time in times]
        table.append((row.engine, row.key, row.op, *cells))
    return columns(table, left=3)


def _to_megabytes(count: int | None) -> str:
    """Return a number of bytes in MB, "" if unknown."""
    return "" if count is None else f"{count / 1e6:.0f}"
