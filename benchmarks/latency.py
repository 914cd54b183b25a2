"""Latency as the target, against MACs as its proxy: both cuts at the same measured speed.

    python -m benchmarks.latency --zoo ../shared/zoo [--models NAME_OR_FILE ...]
        [--engine onnxruntime] [--speedup 1.5] [--busy PROGRAMS] [--json FILE]

The first cut is `--target latency.ENGINE=1.5x`. The second is `--target macs=...`, with any width,
at the share of the MACs that makes it as fast, found by bisection; its row is missing if no such
cut is as fast. Criterion, allocator and repair are the defaults. Then both are timed in alternation
with the original, and held-out inputs measure the divergence of their outputs from it. A model
without calibration data (a file) gets random inputs. With --busy the second cut is again that for
the latency, decided while PROGRAMS endless loops compete for the CPUs; the claim is that its MACs
are within 10 % of the first one's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import zoo
from benchmarks.runner import Row, make_parser, write_results
from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import Data, open_data, split
from onnxprune.engines import ENGINES
from onnxprune.engines.bench import bench, machine
from onnxprune.engines.cost.latency import Probe
from onnxprune.engines.measure import Schedule
from onnxprune.errors import TargetError
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
SAMPLES = 192  # a third of them is held out
STEPS = 8  # of the bisection: 1/256 of the MACs
FINAL = Schedule(seconds=10.0)


@dataclass(frozen=True)
class Setup:
    """What both cuts of a model share.

    Attributes
    ----------
    context
        Analysis, calibration data and settings.
    scores
        Importance of the channels.
    recipe
        Options with their defaults resolved.
    feeds
        An input for timing.
    held_out
        Inputs that neither scores nor repair see.
    """

    context: Context
    scores: Mapping[str, Any]
    recipe: Recipe
    feeds: Mapping[str, Any]
    held_out: Data


def main() -> None:
    """Print a row per model and cut, and write the results."""
    parser = make_parser(__doc__, "zoo", "threads", "json", models=MODELS, engine="onnxruntime")
    parser.add_argument("--speedup", type=float, default=1.5)
    parser.add_argument("--busy", type=int, default=0, metavar="PROGRAMS")
    options = parser.parse_args()
    rows = []
    print("| model | target | MACs left | speed-up [95 %] | divergence |")
    print("| --- | --- | --- | --- | --- |")
    for name in options.models:
        for row in compare(name, options):
            rows.append(row)
            speed = f"{row['speedup']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            head = f"| {Path(name).name.removesuffix('.onnx')} | {row['target']}"
            print(f"{head} | {row['macs']:.1%} | {speed} | {row['divergence']:.4f} |", flush=True)
    write_results(options.json, {"machine": machine(), "rows": rows})


def compare(name: str, options: argparse.Namespace) -> list[Row]:
    """Make both cuts of a model and measure them."""
    with TemporaryDirectory() as folder:
        setup = prepare(name, options, Path(folder))
        by_latency = decide(setup.context, setup.scores, setup.recipe, PlanInputs(setup.feeds))
        plans = {"latency": by_latency}
        if options.busy:
            with busy(options.busy):
                disturbed = decide(
                    setup.context, setup.scores, setup.recipe, PlanInputs(setup.feeds)
                )
            return measure(setup, {**plans, "latency, busy": disturbed}, name)
        by_macs = find_as_fast(setup, by_latency)
        if by_macs:
            plans["macs"] = by_macs
        return measure(setup, plans, name)


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Run endless loops beside the block."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def prepare(name: str, options: argparse.Namespace, folder: Path) -> Setup:
    """Analyze and score a model of the zoo, or a file."""
    entries = zoo.open_zoo(options.zoo)
    path, data = Path(name), None
    if name in entries:
        path = entries[name].path
        data = zoo.calibration_file(entries[name], SAMPLES, folder / "data.npz")
    analysis = analyze(load(path))
    types = input_types(analysis.model)
    inputs = open_data(str(data) if data else None, types, samples=SAMPLES, seed=0)
    rest = inputs.samples // 3
    calibration, held_out = split(inputs, inputs.samples - rest, rest)
    target = f"latency.{options.engine}={options.speedup:g}x"
    flip = name.startswith("imagenet")
    recipe = Recipe.of({"target": target, "threads": options.threads, "flip": flip})
    recipe, _ = resolve(recipe, analysis, True)
    context = Context(
        analysis,
        calibration,
        threads=recipe.threads,
        batch_size=recipe.batch_size,
        flip=recipe.flip,
    )
    scores = CRITERIA.get(recipe.criterion)(context)
    return Setup(context, scores, recipe, next(calibration.batches(1)), held_out)


def find_as_fast(setup: Setup, plan: Plan) -> Plan | None:
    """Bisect for the cut by MACs that keeps most of them and is as fast; None if there is none."""
    analysis, recipe = setup.context.analysis, setup.recipe
    engine, macs = ENGINES.get(recipe.target[0].engine), analysis.cost().macs
    options = engine_options(recipe)
    with Probe(engine, analysis, options, feeds=setup.feeds, schedule=CONFIRM) as probe:
        limit_ms = probe(plan.kept)
        low, high, best = 0.0, 1.0, None
        for _ in range(STEPS):
            share = (low + high) / 2
            limits = Constraints({"macs": share * macs})
            try:
                candidate = allocate(recipe.allocate, setup.context, setup.scores, limits)
            except TargetError:
                low = share
                continue
            if probe(candidate.kept) <= limit_ms:
                low, best = share, candidate
            else:
                high = share
    return best


def repair(setup: Setup, plan: Plan) -> Model:
    """Return the cut and repaired model, as `optimize` would."""
    context = setup.context
    pruned = cut(context.analysis, plan)
    result: Model = REPAIRS.get(setup.recipe.repair)(context.analysis, plan, pruned, context)
    return result


def measure(setup: Setup, plans: Mapping[str, Plan], name: str) -> list[Row]:
    """Time the cuts with the original; return a row per cut."""
    analysis, engine = setup.context.analysis, setup.recipe.target[0].engine
    cuts = {target: repair(setup, plan) for target, plan in plans.items()}
    models = {"original": analysis.model, **cuts}
    timed = bench(
        [replace(model, path=Path(label)) for label, model in models.items()],
        [engine],
        options=engine_options(setup.recipe),
        schedule=FINAL,
        feeds=setup.feeds,
        layers=False,
    )
    ratios = {r.contender: r for r in timed.ratios[engine]}
    return [
        {
            "model": name,
            "target": target,
            "macs": analysis.cost(plans[target].kept).macs / analysis.cost().macs,
            "speedup": ratios[target].median,
            "low": ratios[target].low,
            "high": ratios[target].high,
            "divergence": fidelity(analysis.model, model, setup.held_out).divergence,
        }
        for target, model in cuts.items()
    ]


if __name__ == "__main__":
    main()
