"""Trained models in float and int8, pruned and not, with random channels as control.

    python -m benchmarks.quantize --zoo ../shared/zoo --json quantize.jsonl
        [--models NAME ...] [--target macs=70%] [--seeds 3] [--limit N] [--time]

Methods: float, int8, pruned, both (pruned, then int8), and random (int8 of a model with the widths
of `pruned` and random channels, one per seed). Calibration inputs come from the model's calibration
data; the metric is measured on evaluation data that no method sees. --time measures speeds in
rounds paired with the float model, on one thread. Rows in the JSON Lines file are not measured
again. The exit status is 1 if int8 loses more than MOST_LOSS of the metric of the pruned model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runner import Row, complete, make_parser, markdown
from benchmarks.zoo import Entry, calibration_file, open_zoo, score
from onnxprune import optimize
from onnxprune.engines.bench import bench
from onnxprune.engines.measure import Schedule
from onnxprune.ir.io import Model, load
from onnxprune.quantize.static import quantize
from onnxprune.run.adapter import open_inputs
from onnxprune.run.recipe import Recipe
from onnxprune.types import Plan

FLOAT, INT8, PRUNED, BOTH, RANDOM = METHODS = ("float", "int8", "pruned", "both", "random")
MOST_LOSS = {"classify": 0.005, "person": 0.005, "detect": 0.01, "segment": 0.01, "sr": 0.2}


class Models:
    """The models of one zoo entry, each built once."""

    def __init__(self, entry: Entry, options: argparse.Namespace, folder: Path) -> None:
        self.source = load(entry.path)
        self.options = options
        path = calibration_file(entry, options.samples, folder / f"{entry.name}.npz")
        self.data = str(path)
        self._pruned: tuple[Model, Plan] | None = None

    def prune(self) -> tuple[Model, Plan]:
        """Return the pruned model and its plan."""
        if self._pruned is None:
            result = optimize(
                self.source,
                data=self.data,
                samples=self.options.samples,
                target=self.options.target,
                engine="none",
            )
            self._pruned = result.model, result.plan
        return self._pruned

    def prune_randomly(self, seed: int) -> Model:
        """Return a model with the widths of the pruned one, and random channels."""
        _, plan = self.prune()
        sizes = {group.name: group.size for group in self._groups()}
        ratio = {name: 1 - len(kept) / sizes[name] for name, kept in plan.kept.items()}
        return optimize(
            self.source,
            data=self.data,
            samples=self.options.samples,
            criterion="random",
            ratio=ratio,
            round_to=1,
            max_fraction=1.0,
            seed=seed,
            engine="none",
        ).model

    def _groups(self) -> Sequence[Any]:
        """Return the groups of the original."""
        from onnxprune import analyze

        return analyze(self.source).groups

    def build(self, method: str, seed: int) -> tuple[Model, Row]:
        """Return the model of a method, and facts about its quantization."""
        if method in (FLOAT, INT8):
            model = self.source
        else:
            model = self.prune_randomly(seed) if method == RANDOM else self.prune()[0]
        if method in (FLOAT, PRUNED):
            return model, {}
        recipe = Recipe(data=self.data, samples=self.options.samples)
        result = quantize(model, open_inputs(model, recipe))
        return result.model, result.facts()

    def time(self, model: Model) -> list[float]:
        """Return the speed-up over the float model, with its interval."""
        recipe = Recipe(data=self.data, samples=1)
        report = bench(
            [replace(self.source, path=Path("float")), replace(model, path=Path("model"))],
            schedule=Schedule(seconds=2.0),
            feeds=next(open_inputs(self.source, recipe).batches(1)),
            layers=False,
        )
        ((ratio,),) = report.ratios.values()
        return [ratio.median, ratio.low, ratio.high]


def measure(models: Models, entry: Entry, key: Row) -> Row:
    """Build a model and evaluate it."""
    start = time.process_time()
    model, facts = models.build(key["method"], key["seed"])
    cpu_s = time.process_time() - start
    files = {file: s.value for file, s in score(entry, model, limit=key["limit"]).items()}
    row = {"value": float(np.mean(list(files.values()))), "files": files, "facts": facts}
    if models.options.time and key["method"] not in (FLOAT, RANDOM):
        row["speed"] = models.time(model)
    return {**row, "bytes": model.size_bytes(), "cpu_s": round(cpu_s, 1)}


def make_keys(options: argparse.Namespace, entries: Mapping[str, Entry]) -> Iterator[Row]:
    """Yield what identifies each row."""
    for name in entries:
        if options.models and name not in options.models:
            continue
        for method in METHODS:
            for seed in range(options.seeds if method == RANDOM else 1):
                yield {"model": name, "method": method, "seed": seed, **settings_of(options)}


def settings_of(options: argparse.Namespace) -> Row:
    """Return what all rows of a table share."""
    return {"target": options.target, "samples": options.samples, "limit": options.limit}


def describe(row: Row) -> str:
    """Return a row as a line."""
    return f"{row['model']:30} {row['method']:8} {row['value']:.4f}  {row['cpu_s']:.0f} CPU s"


def table(rows: Sequence[Row]) -> str:
    """Return metric and speed, a line per model."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = [model]
        for method in METHODS:
            own = [r for r in rows if (r["model"], r["method"]) == (model, method)]
            text = " / ".join(f"{row['value']:.4f}" for row in own)
            speeds = [f"{row['speed'][0]:.2f}x" for row in own if "speed" in row]
            cells.append(", ".join([text, *speeds]))
        lines.append(cells)
    return markdown(["model", *METHODS], lines)


def main() -> int:
    """Measure missing rows and print the table."""
    parser = make_parser(__doc__, "zoo", "models", "limit", json=Path("quantize.jsonl"))
    parser.add_argument("--target", default="macs=70%", help="target of the pruned models")
    parser.add_argument("--samples", type=int, default=256, help="most calibration inputs")
    parser.add_argument("--seeds", type=int, default=3, help="models with random channels")
    parser.add_argument("--time", action="store_true", help="measure speeds too")
    options = parser.parse_args()
    entries = open_zoo(options.zoo)
    with tempfile.TemporaryDirectory() as folder:
        build = cache(lambda name: Models(entries[name], options, Path(folder)))
        rows = complete(
            options.json,
            make_keys(options, entries),
            lambda key: measure(build(key["model"]), entries[key["model"]], key),
            describe,
        )
    shared = settings_of(options)
    rows = [row for row in rows if all(row[k] == v for k, v in shared.items())]
    print(table(rows))
    values = {(row["model"], row["method"]): row["value"] for row in rows}
    missed = [
        name
        for name, entry in entries.items()
        if (name, BOTH) in values
        and values[name, PRUNED] - values[name, BOTH] > MOST_LOSS[entry.task]
    ]
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
