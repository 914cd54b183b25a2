"""What is left of the quality after a cut without training: methods and controls on trained models.

    python -m benchmarks.accuracy --zoo ../shared/zoo --json accuracy.jsonl [--models NAME ...] [--targets 0.7 0.5] [--seeds 3]

Each row: model, target share of MACs, method, seed -> metric on the evaluation data, which chooses nothing; calibration inputs come
from the model's calibration data, without labels. Rows that the JSON lines file holds already are not computed again. The table
printed at the end gives the mean over seeds and, where there are several, the spread (largest minus smallest).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import onnxprune
from benchmarks import zoo

SAMPLES = 512
HELD_OUT = 64  # further inputs, which calibrate nothing: the run's report measures on them
# name -> (criterion, allocate, repair): the default, the controls and the parts of the default one by one
METHODS = {
    "default": ("reconstruction", "divergence", "least-squares"),
    "fast": ("reconstruction", "layer-error", "least-squares"),
    "random, least squares": ("random", "uniform", "least-squares"),
    "l2, least squares": ("l2", "uniform", "least-squares"),
    "reconstruction, bias": ("reconstruction", "divergence", "bias"),
    "l1, bias": ("l1", "knapsack", "bias"),
    "l2, bias": ("l2", "knapsack", "bias"),
    "l2, none": ("l2", "knapsack", "none"),
    "activation*weight, bias": ("activation*weight", "knapsack", "bias"),
    "fisher, bias": ("fisher", "knapsack", "bias"),
    "random, bias": ("random", "knapsack", "bias"),
}
FLIPPED = ("cifar10", "imagenet", "vww")  # photographs that may be mirrored


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    zoo.add_option(parser)
    parser.add_argument("--json", type=Path, default=Path("accuracy.jsonl"))
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--targets", nargs="*", type=float, default=[0.7, 0.5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--limit", type=int, help="evaluate on the first N samples only; said in the row"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows = (
        [json.loads(line) for line in options.json.read_text().splitlines()]
        if options.json.exists()
        else []
    )
    done = {key(row) for row in rows}
    entries = zoo.open_zoo(options.zoo)
    for name in options.models or list(entries):
        for row in missing(name, options, done):
            row.update(measure(entries[name], row, options))
            rows.append(row)
            with options.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(line(row), flush=True)
    print("\n".join(table(rows)))


def missing(
    name: str, options: argparse.Namespace, done: set[tuple[Any, ...]]
) -> Iterator[dict[str, Any]]:
    """Rows to compute for a model; the whole model first."""
    for target in [1.0, *options.targets]:
        for method in options.methods if target < 1 else ["whole"]:
            for seed in range(options.seeds if target < 1 else 1):
                row = {
                    "model": name,
                    "target": target,
                    "method": method,
                    "seed": seed,
                    "limit": options.limit,
                }
                if key(row) not in done:
                    yield row


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a row that row."""
    return row["model"], row["target"], row["method"], row["seed"], row["limit"]


def measure(entry: zoo.Entry, row: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Cut a model by a method and evaluate it."""
    if row["method"] == "whole":
        return {"metric": quality(entry, entry.path, options), "macs": 1.0, "seconds": 0.0}
    criterion, allocate, repair = METHODS[row["method"]]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "calibration.npz", Path(folder) / "out.onnx"
        zoo.calibration_file(entry, SAMPLES + HELD_OUT, data)
        result = onnxprune.optimize(
            entry.path,
            out,
            target=f"macs={row['target']:.0%}",
            data=str(data),
            samples=SAMPLES,
            criterion=criterion,
            allocate=allocate,
            repair=repair,
            round_to=1,
            seed=row["seed"],
            threads=options.threads,
            flip=entry.name.startswith(FLIPPED),
            engine="none",
        )
        seconds = time.perf_counter() - began
        share = result.report.after["macs"] / result.report.before["macs"]
        return {"metric": quality(entry, out, options), "macs": share, "seconds": seconds}


def quality(entry: zoo.Entry, model: Path, options: argparse.Namespace) -> dict[str, float]:
    """Value and standard error of the model's metric on its first evaluation file."""
    score = next(
        iter(zoo.score(entry, model, limit=options.limit, threads=options.threads).values())
    )
    return {
        "name": score.name,
        "value": score.value,
        "standard_error": score.standard_error,
        "n": score.n,
    }


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    return f"{row['model']:30} {row['target']:.0%} {row['method']:26} seed {row['seed']}: {row['metric']['value']:.4f} ({row['seconds']:.0f} s)"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line a model and target, a column a method."""
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    lines = [
        "| model | MACs | whole | " + " | ".join(methods) + " |",
        "| --- " * (3 + len(methods)) + "|",
    ]
    for model in dict.fromkeys(r["model"] for r in rows):
        whole = next(
            (r["metric"] for r in rows if r["model"] == model and r["method"] == "whole"), None
        )
        for target in sorted(
            {r["target"] for r in rows if r["model"] == model and r["target"] < 1}, reverse=True
        ):
            cells = []
            for method in methods:
                values = [
                    r["metric"]["value"]
                    for r in rows
                    if (r["model"], r["target"], r["method"]) == (model, target, method)
                ]
                spread = f" ± {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
                cells.append(f"{mean(values):.4f}{spread}" if values else "")
            head = (
                f"{whole['value']:.4f} (se {whole['standard_error'] or 0:.4f}, n {whole['n']})"
                if whole
                else ""
            )
            lines.append(f"| {model} | {target:.0%} | {head} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
