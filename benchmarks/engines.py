"""Speed of trained models at half of their MACs, on every installed engine.

    python -m benchmarks.engines --zoo ../shared/zoo [--engine onnxruntime,ncnn] [--json FILE]

Channels are selected by l2 norms without repair: the question is speed, not accuracy. Original and
pruned model are timed in alternation on one real input. The speed-up is the median of paired rounds
with its 95 % interval; the next column compares the fastest inferences, which other work on the
machine disturbs least. With `--round-to auto` each engine gets a model of its own, with multiples
of the engine's block of channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.runner import Row, available_engines, make_parser, write_results
from benchmarks.zoo import Entry, calibration, open_zoo
from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions, static_inputs
from onnxprune.engines.bench import bench, machine
from onnxprune.engines.measure import Schedule
from onnxprune.errors import EngineError, OnnxpruneError
from onnxprune.ir.io import Model, load
from onnxprune.surgery.cut import cut

AGREES = 1e-4  # float32: another order of summation, and Winograd transforms


def measure(entry: Entry, engines: list[str], options: argparse.Namespace) -> list[Row]:
    """Return a row per engine, with "failed" where a model cannot be pruned or run."""
    try:
        context = Context(analyze(load(entry.path)))
        scores = CRITERIA.get("l2")(context)
    except OnnxpruneError as problem:
        return [{"model": entry.name, "engine": "-", "macs": 1.0, "failed": first_line(problem)}]
    images = calibration(entry, 1)
    rows = []
    for engine in engines:
        row: Row = {"model": entry.name, "engine": engine, "macs": 1.0}
        try:
            pruned, shape = prune(context, scores, engine, options)
            row |= shape
            row |= time_pair(context.analysis.model, pruned, engine, images, entry, options)
        except OnnxpruneError as problem:
            row["failed"] = first_line(problem)
        rows.append(row)
    return rows


def prune(
    context: Context, scores: Mapping[str, Any], engine: str, options: argparse.Namespace
) -> tuple[Model, Row]:
    """Return the model cut to the share of MACs, and that share with the multiple of widths."""
    auto = options.round_to == "auto"
    multiple = ENGINES.get(engine).channel_multiple() if auto else int(options.round_to)
    analysis = context.analysis
    macs = analysis.cost().macs
    limits = Constraints({"macs": options.macs * macs}, round_to=multiple, half_block=auto)
    plan = allocate("knapsack", context, scores, limits)
    share = analysis.cost(plan.kept).macs / macs
    return cut(analysis, plan), {"round_to": multiple, "macs": share}


def time_pair(
    original: Model,
    pruned: Model,
    engine: str,
    images: Any,
    entry: Entry,
    options: argparse.Namespace,
) -> Row:
    """Time both models in alternation and compare their outputs with onnxruntime's."""
    name = entry.input[0]
    specs = static_inputs(pruned, {name: images.shape})
    models = [
        replace(model, path=Path(label))
        for model, label in ((original, "original"), (pruned, "pruned"))
    ]
    result = bench(
        models,
        [engine],
        options=EngineOptions(threads=options.threads),
        schedule=Schedule(seconds=options.seconds),
        feeds={name: images.astype(specs[name].dtype)},
        layers=False,
    )
    if result.failures:
        raise EngineError("engine-refused", next(iter(result.failures.values())))
    (ratio,) = result.ratios[engine]
    before, after = result.measurements
    return {
        "before_ms": before.median_ms,
        "after_ms": after.median_ms,
        "speedup": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "fastest": before.min_ms / after.min_ms,
        "difference": max(before.difference or 0.0, after.difference or 0.0),
        "warnings": list(result.warnings),
    }


def first_line(problem: OnnxpruneError) -> str:
    """Return the first line of an error's message."""
    return problem.message.splitlines()[0]


def line(row: Mapping[str, Any]) -> str:
    """Return a row of the table."""
    head = f"{row['model']:28} {row['engine']:12} {row['macs']:5.1%}"
    if "failed" in row:
        return f"{head}  {row['failed']}"
    agrees = "" if row["difference"] <= AGREES else "  DIFFERS"
    times = f"{row['before_ms']:9.3f} {row['after_ms']:9.3f}"
    speed = f"{row['speedup']:6.2f}x [{row['low']:.2f}, {row['high']:.2f}] {row['fastest']:6.2f}x"
    return f"{head} {times} {speed}  {row['difference']:.1e}{agrees}"


def main() -> None:
    """Print the table and write the results."""
    parser = make_parser(__doc__, "zoo", "models", "engine", "threads", "seconds", "json")
    parser.add_argument("--macs", type=float, default=0.5, help="remaining share")
    parser.add_argument("--round-to", default="1", help="a multiple, or auto: that of each engine")
    options = parser.parse_args()
    engines = available_engines(options.engine)
    columns = "  MACs    before     after  speed-up             fastest  difference"
    print(f"{'model':28} {'engine':12}{columns}")
    rows: list[Row] = []
    for name, entry in open_zoo(options.zoo).items():
        if options.models and name not in options.models:
            continue
        of_model = measure(entry, engines, options)
        rows += of_model
        print("\n".join(map(line, of_model)), flush=True)
    settings = {"threads": options.threads, "round_to": options.round_to}
    write_results(options.json, {"machine": machine(), **settings, "rows": rows})


if __name__ == "__main__":
    main()
