"""bench: models side by side on the engines that will run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.common import emit, recipe_from, recipe_options, say, shared

if TYPE_CHECKING:
    from onnxprune.engines.bench import BenchReport


@click.command()
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
@recipe_options("measure", "runtime", without=("batch_size",))
@shared
def bench(
    models: tuple[str, ...],
    collect: str | None,
    ssh: str | None,
    layers: bool,
    recipe_file: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure the latency of MODELS, interleaved; speed-ups are relative to the first one."""
    from onnxprune.cli.handoff import by_ssh, show

    recipe = recipe_from(recipe_file, values)
    if collect or ssh:
        from onnxprune.deploy.handoff import collect as read

        show(read(collect) if collect else by_ssh(models, str(ssh), recipe), as_json)
        return
    if not models:
        raise click.UsageError("Missing argument 'MODELS...'.")
    from onnxprune.engines.base import EngineOptions
    from onnxprune.engines.bench import bench as run
    from onnxprune.engines.measure import Schedule

    options = EngineOptions(
        threads=recipe.threads, precision=recipe.precision, cores=recipe.pin, shapes=recipe.shape
    )
    found = run(
        models,
        recipe.engine,
        options=options,
        schedule=Schedule(seconds=recipe.seconds),
        layers=layers,
        seed=recipe.seed,
        progress=say,
    )
    if as_json:
        emit(found.as_dict())
    else:
        click.echo(_page(found, layers))
    for warning in found.warnings:
        say(f"warning: {warning}")


def _page(found: BenchReport, layers: bool) -> str:
    from onnxprune.report.terminal import columns

    ratios = {(engine, r.contender): r for engine, rows in found.ratios.items() for r in rows}
    on_device = any(m.device_memory_bytes is not None for m in found.measurements)
    header = (
        "engine",
        "model",
        "median ms",
        "min",
        "p99",
        "IQR",
        "speed-up",
        "95 % interval",
        "difference",
        "peak MB",
        "device MB",
    )
    table: list[tuple[str, ...]] = [header[: 10 + on_device]]
    for m in found.measurements:
        ratio = ratios.get((m.engine, m.model))
        spread = (
            (f"{ratio.median:.2f}x", f"{ratio.low:.2f} to {ratio.high:.2f}") if ratio else ("", "")
        )
        apart = f"{m.difference:.1e}" if m.difference is not None else ""
        memory = [
            f"{b / 1e6:.0f}" if b is not None else ""
            for b in (m.peak_memory_bytes, m.device_memory_bytes)
        ]
        table.append(
            (
                m.engine,
                m.model,
                *(f"{v:.3f}" for v in (m.median_ms, m.min_ms, m.p99_ms, m.iqr_ms)),
                *spread,
                apart,
                *memory[: 1 + on_device],
            )
        )
    pages = [columns(table, left=2)]
    if layers and found.layers:
        names = list(dict.fromkeys(m.model for m in found.measurements))
        rows: list[tuple[str, ...]] = [("engine", "tensor", "op", *names)]
        for row in found.layers:
            times = (row.times_ms.get(n) for n in names)
            rows.append(
                (row.engine, row.key, row.op, *("" if t is None else f"{t:.4f}" for t in times))
            )
        pages.append(columns(rows, left=3))
    return "\n\n".join(pages)
