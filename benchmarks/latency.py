"""A latency as the target, against MACs as its proxy: both cuts at the same measured speed, and what they cost.

    python -m benchmarks.latency --zoo ../shared/zoo [--models NAME_OR_FILE ...] [--engine onnxruntime] [--speedup 1.5] [--json FILE]

The first cut is `--target latency.ENGINE=1.5x`. The second is `--target macs=...`, any width, at the share of the MACs that makes it as fast, found by
bisection; its row is missing where no such cut is as fast. Criterion, allocation and repair are the defaults. Then both run interleaved with the original,
and further inputs measure how far their outputs are from it. A model without calibration data (a file) is given random inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import zoo
from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import Data, open_data, split
from onnxprune.engines import ENGINES
from onnxprune.engines.bench import bench, machine
from onnxprune.engines.cost.latency import Probe
from onnxprune.engines.measure import Schedule
from onnxprune.errors import TargetError
from onnxprune.files import write_json
from onnxprune.ir.io import Model, load
from onnxprune.metrics.fidelity import fidelity
from onnxprune.repair import REPAIRS
from onnxprune.run.adapter import engine_options, input_types
from onnxprune.run.planning import CONFIRM, PlanInputs, decide
from onnxprune.run.recipe import Recipe
from onnxprune.run.resolve import resolve
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

MODELS = ("imagenet_mobilenetv2_1.0_dq", "coco_yolofastestv2")
SAMPLES = 192  # a third of them measures the outputs and nothing else
STEPS = 8  # of the bisection; 1/256 of the MACs
FINAL = Schedule(seconds=10.0)


def main() -> None:
    """A row a model and cut."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    zoo.add_option(parser)
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="of the zoo, or files")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--speedup", type=float, default=1.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print(
        "| model | target | MACs left | speed-up [95 %] | divergence |\n| --- | --- | --- | --- | --- |"
    )
    for name in options.models:
        for row in compared(name, options):
            rows.append(row)
            speed = f"{row['speedup']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            print(
                f"| {Path(name).name.removesuffix('.onnx')} | {row['target']} | {row['macs']:.1%} | {speed} | {row['divergence']:.4f} |",
                flush=True,
            )
    if options.json:
        write_json(options.json, {"machine": machine(), "rows": rows})


def compared(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both cuts of a model."""
    entries = zoo.open_zoo(options.zoo)
    with TemporaryDirectory() as folder:
        path = entries[name].path if name in entries else Path(name)
        data = (
            zoo.calibration_file(entries[name], SAMPLES, Path(folder) / "data.npz")
            if name in entries
            else None
        )
        analysis = analyze(load(path))
        everything = open_data(
            str(data) if data else None, input_types(analysis.model), samples=SAMPLES, seed=0
        )
        calibration, held_out = split(
            everything, everything.samples - everything.samples // 3, everything.samples // 3
        )
        recipe = Recipe.of(
            {
                "target": f"latency.{options.engine}={options.speedup:g}x",
                "threads": options.threads,
                "flip": name.startswith("imagenet"),
            }
        )
        recipe, _ = resolve(recipe, analysis, True)
        context = Context(
            analysis,
            calibration,
            threads=recipe.threads,
            batch_size=recipe.batch_size,
            flip=recipe.flip,
        )
        scores = CRITERIA.get(recipe.criterion)(context)
        feeds = next(calibration.batches(1))
        by_latency = decide(context, scores, recipe, PlanInputs(feeds))
        by_macs = as_fast(context, scores, recipe, by_latency, feeds)
        plans = {"latency": by_latency, **({"macs": by_macs} if by_macs else {})}
        return rows_of(
            {what: repaired(context, plan, recipe) for what, plan in plans.items()},
            plans,
            analysis,
            held_out,
            recipe,
            feeds,
            name,
        )


def as_fast(
    context: Context,
    scores: Mapping[str, Any],
    recipe: Recipe,
    plan: Plan,
    feeds: Mapping[str, Any],
) -> Plan | None:
    """The cut by MACs, any width, that keeps most of them and is at least as fast as the plan; None where none is."""
    analysis, engine = context.analysis, ENGINES.get(recipe.target[0].engine)
    whole = analysis.cost().macs
    with Probe(engine, analysis, engine_options(recipe), feeds=feeds, schedule=CONFIRM) as probe:
        wanted = probe(plan.kept)
        low, high, best = 0.0, 1.0, None
        for _ in range(STEPS):
            share = (low + high) / 2
            try:
                found = allocate(
                    recipe.allocate, context, scores, Constraints({"macs": share * whole})
                )
            except TargetError:
                low = share
                continue
            if probe(found.kept) <= wanted:
                low, best = share, found
            else:
                high = share
    return best


def repaired(context: Context, plan: Plan, recipe: Recipe) -> Model:
    """The cut model as `optimize` leaves it."""
    found: Model = REPAIRS.get(recipe.repair)(
        context.analysis, plan, cut(context.analysis, plan), context
    )
    return found


def rows_of(
    cuts: Mapping[str, Model],
    plans: Mapping[str, Plan],
    analysis: Analysis,
    held_out: Data,
    recipe: Recipe,
    feeds: Mapping[str, Any],
    name: str,
) -> list[dict[str, Any]]:
    """What both cuts come to."""
    named = [
        replace(model, path=Path(what))
        for what, model in {"original": analysis.model, **cuts}.items()
    ]
    engine = recipe.target[0].engine
    timed = bench(
        named, [engine], options=engine_options(recipe), schedule=FINAL, feeds=feeds, layers=False
    )
    ratios = {r.contender: r for r in timed.ratios[engine]}
    return [
        {
            "model": name,
            "target": what,
            "macs": analysis.cost(plans[what].kept).macs / analysis.cost().macs,
            "speedup": ratios[what].median,
            "low": ratios[what].low,
            "high": ratios[what].high,
            "divergence": fidelity(analysis.model, model, held_out).divergence,
        }
        for what, model in cuts.items()
    ]


if __name__ == "__main__":
    main()
