"""Quality after a cut without training: methods and controls on trained models.

    python -m benchmarks.accuracy --zoo ../shared/zoo --json accuracy.jsonl
        [--models NAME ...] [--targets 0.7 0.5] [--seeds 3]

A row is the metric of a model cut to a target share of its MACs by a method, for a seed. The metric
is measured on evaluation data that no method sees; calibration inputs come from the model's
calibration data, without labels. Rows in the JSON Lines file are not measured again. The table
gives the mean over seeds and half their range.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import onnxprune
from benchmarks import zoo
from benchmarks.runner import ORIGINAL, Row, complete, make_parser, quality_table

SAMPLES = 512
HELD_OUT = 64  # further inputs, for the report of the run only
# criterion, allocator and repair: the default, controls, and each part of the default by itself
METHODS = {
    "default": ("reconstruction", "divergence", "least-squares"),
    "default, low rank": ("reconstruction", "divergence", "least-squares"),
    "random, low rank": ("random", "uniform", "least-squares"),
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
LOW_RANK = "low rank"  # the end of the names of methods with --low-rank
FLIPPED = ("cifar10", "imagenet", "vww")  # photographs, which may be mirrored


def main() -> None:
    """Measure missing rows and print the table."""
    parser = make_parser(
        __doc__, "zoo", "models", "limit", "threads", json=Path("accuracy.jsonl"), seeds=3
    )
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--targets", nargs="*", type=float, default=[0.7, 0.5])
    options = parser.parse_args()
    entries = zoo.open_zoo(options.zoo)
    keys = make_keys(options.models or list(entries), options)
    rows = complete(
        options.json, keys, lambda key: measure(entries[key["model"]], key, options), describe
    )
    print(quality_table(rows, list(METHODS)))


def make_keys(models: list[str], options: argparse.Namespace) -> Iterator[Row]:
    """Yield what identifies each row, the original model first."""
    for name in models:
        common = {"model": name, "limit": options.limit}
        yield {**common, "target": 1.0, "method": ORIGINAL, "seed": 0}
        for target in options.targets:
            for method in options.methods:
                for seed in range(options.seeds):
                    yield {**common, "target": target, "method": method, "seed": seed}


def measure(entry: zoo.Entry, key: Row, options: argparse.Namespace) -> Row:
    """Cut a model by a method and evaluate it."""
    if key["method"] == ORIGINAL:
        quality = zoo.quality(entry, entry.path, options.limit, options.threads)
        return {"metric": quality, "macs": 1.0, "seconds": 0.0}
    criterion, allocate, repair = METHODS[key["method"]]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "calibration.npz", Path(folder) / "out.onnx"
        zoo.calibration_file(entry, SAMPLES + HELD_OUT, data)
        result = onnxprune.optimize(
            entry.path,
            out,
            target=f"macs={key['target']:.0%}",
            data=str(data),
            samples=SAMPLES,
            criterion=criterion,
            allocate=allocate,
            repair=repair,
            round_to=1,
            seed=key["seed"],
            threads=options.threads,
            low_rank=key["method"].endswith(LOW_RANK),
            flip=entry.name.startswith(FLIPPED),
            engine="none",
        )
        seconds = time.perf_counter() - start
        share = result.report.after["macs"] / result.report.before["macs"]
        quality = zoo.quality(entry, out, options.limit, options.threads)
        return {"metric": quality, "macs": share, "seconds": seconds}


def describe(row: Row) -> str:
    """Return a row as a line."""
    place = f"{row['model']:30} {row['target']:.0%} {row['method']:26} seed {row['seed']}"
    return f"{place}: {row['metric']['value']:.4f} ({row['seconds']:.0f} s)"


if __name__ == "__main__":
    main()
