"""Every trained model at half of its MACs, on every engine that is here: does the time follow, and do the outputs agree.

    python -m benchmarks.engines --zoo FOLDER --engine onnxruntime,openvino,ncnn,mnn --json engines.json

Channels are chosen by l2 norms without repair: the question is speed, not accuracy. Original and pruned model are timed interleaved on one real input.
The speed-up is the median of paired rounds with its interval, and beside it that of the fastest inferences, which other work on the machine disturbs least.
With `--round-to auto` each engine gets a model of its own, of widths that are multiples of the engine's.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.zoo import Entry, add_option, calibration, open_zoo
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
from onnxprune.files import write_json
from onnxprune.ir.io import load
from onnxprune.surgery.cut import cut

AGREES = 1e-4  # float32: another order of summation, and Winograd transforms


def measure(
    entry: Entry,
    engines: Sequence[str],
    share: float,
    round_to: int | str,
    threads: int,
    schedule: Schedule,
) -> list[dict[str, Any]]:
    """A row for each engine: speed-up with its interval, and how far the outputs of both models are from onnxruntime's."""
    analysis = analyze(load(entry.path))
    context = Context(analysis)
    scores = CRITERIA.get("l2")(context)
    macs = analysis.cost().macs
    images = calibration(entry, 1)
    name = entry.input[0]
    rows = []
    for engine in engines:
        multiple = ENGINES.get(engine).channel_multiple() if round_to == "auto" else int(round_to)
        row: dict[str, Any] = {
            "model": entry.name,
            "engine": engine,
            "round_to": multiple,
            "macs": 1.0,
        }
        try:
            plan = allocate(
                "knapsack",
                context,
                scores,
                Constraints(
                    {"macs": share * macs}, round_to=multiple, half_block=round_to == "auto"
                ),
            )
            row["macs"] = analysis.cost(plan.kept).macs / macs
            small = cut(analysis, plan)
            specs = static_inputs(small, {name: images.shape})
            models = [
                replace(model, path=Path(label))
                for model, label in ((analysis.model, "original"), (small, "pruned"))
            ]
            options = EngineOptions(threads=threads)
            found = bench(
                models,
                [engine],
                options=options,
                schedule=schedule,
                feeds={name: images.astype(specs[name].dtype)},
                layers=False,
            )
            if found.failures:
                raise EngineError("engine-refused", next(iter(found.failures.values())))
        except OnnxpruneError as problem:
            rows.append({**row, "failed": problem.message.splitlines()[0]})
            continue
        (ratio,) = found.ratios[engine]
        before, after = found.measurements
        rows.append(
            {
                **row,
                "before_ms": before.median_ms,
                "after_ms": after.median_ms,
                "speedup": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "fastest": before.min_ms / after.min_ms,
                "difference": max(before.difference or 0.0, after.difference or 0.0),
                "warnings": list(found.warnings),
            }
        )
    return rows


def line(row: Mapping[str, Any]) -> str:
    """One row of the table."""
    head = f"{row['model']:28} {row['engine']:12} {row['macs']:5.1%}"
    if "failed" in row:
        return f"{head}  {row['failed']}"
    agrees = "" if row["difference"] <= AGREES else "  DIFFERS"
    return f"{head} {row['before_ms']:9.3f} {row['after_ms']:9.3f} {row['speedup']:6.2f}x [{row['low']:.2f}, {row['high']:.2f}] {row['fastest']:6.2f}x  {row['difference']:.1e}{agrees}"


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_option(parser)
    parser.add_argument("names", nargs="*", help="entries (default: all)")
    parser.add_argument("--engine", default="onnxruntime,openvino,ncnn,mnn")
    parser.add_argument("--macs", type=float, default=0.5, help="share that may remain")
    parser.add_argument(
        "--round-to", default="1", help="a number, or auto: the multiple of each engine"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of timing, for each model and engine"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    here = [name for name in given.engine.split(",") if ENGINES.get(name).available() is None]
    print(
        f"{'model':28} {'engine':12}  MACs    before     after  speed-up             fastest  difference"
    )
    rows: list[dict[str, Any]] = []
    for name, entry in open_zoo(given.zoo).items():
        if given.names and name not in given.names:
            continue
        try:
            found = measure(
                entry,
                here,
                given.macs,
                given.round_to,
                given.threads,
                Schedule(seconds=given.seconds),
            )
        except OnnxpruneError as problem:
            found = [
                {
                    "model": name,
                    "engine": "-",
                    "macs": 1.0,
                    "failed": problem.message.splitlines()[0],
                }
            ]
        rows += found
        print("\n".join(map(line, found)), flush=True)
    if given.json:
        write_json(
            given.json,
            {
                "machine": machine(),
                "threads": given.threads,
                "round_to": given.round_to,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
