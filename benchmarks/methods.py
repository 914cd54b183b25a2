"""Search methods against each other and random channels, at equal MACs, data and repair.

    python -m benchmarks.methods --zoo ../shared/zoo --json methods.jsonl
        [--models NAME ...] [--methods NAME ...] [--seeds 3] [--runs FOLDER]

A row is the metric of a model pruned by a method, for a seed, with the remaining shares of MACs and
activation values, and seconds. The metric is measured on evaluation data that no method sees;
calibration inputs come from the model's calibration data, without labels. Rows in the JSON Lines
file are not measured again; with `--runs`, an interrupted row resumes from its run directory. The
table gives the mean over seeds and half their range, the best method of a model in bold; a last
line names the methods that are not better than random.
"""

from __future__ import annotations

import argparse
import itertools
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

import onnxprune
from benchmarks import zoo
from benchmarks.runner import ORIGINAL, Row, complete, make_parser, quality_table, quality_values

MODELS = (
    "cifar10_resnet56",
    "cifar10_resnet20",
    "imagenet_mobilenetv2_1.0_dq",
    "coco_yolofastestv2",
    "camvid_espnet",
)
RANDOM = "random"
TUNED = "layer-selection, 3 rounds tuned"  # trains weights, without labels; only on request
# settings of `optimize` that differ between the methods
METHODS: Mapping[str, Mapping[str, Any]] = {
    "one-shot": {},
    "pagcp": {"method": "pagcp"},
    "group-fisher, flops": {
        "method": "group-fisher",
        "method_option": {"normalization": "flops", "interval": 2},
    },
    "group-fisher, act": {
        "method": "group-fisher",
        "method_option": {"normalization": "act", "interval": 2},
    },
    "layer-selection": {"method": "layer-selection"},
    RANDOM: {"criterion": "random", "allocate": "uniform"},
    TUNED: {
        "method": "layer-selection",
        "method_option": {
            "rounds": 3,
            "max_drop": 0.5,
            "end_map": 10,
            "tune": "kd",
            "tune_epochs": 2,
        },
        "samples": 1000,  # all that the entry has
    },
}
REPAIR = "least-squares"
SAMPLES = {"camvid_espnet": 60, "coco_yolofastestv2": 128}  # all that the entries have
USUAL_SAMPLES = 256
BATCH, USUAL_BATCH = {"camvid_espnet": 4}, 32


def main() -> None:
    """Measure missing rows and print the table."""
    parser = make_parser(
        __doc__, "zoo", "seeds", "limit", "threads", json=Path("methods.jsonl"), models=MODELS
    )
    usual = [m for m in METHODS if m != TUNED]
    parser.add_argument("--methods", nargs="*", default=usual, choices=list(METHODS))
    parser.add_argument("--target", type=float, default=0.6, help="remaining share of the MACs")
    parser.add_argument("--runs", type=Path, help="folder for models, plans and run directories")
    options = parser.parse_args()
    entries = zoo.open_zoo(options.zoo)
    rows = complete(
        options.json,
        make_keys(options),
        lambda key: measure(entries[key["model"]], key, options),
        describe,
    )
    print(quality_table(rows, list(METHODS), mark_best=True))
    print(f"\n{compare_with_random(rows)}")


def make_keys(options: argparse.Namespace) -> Iterator[Row]:
    """Yield what identifies each row, the original model first."""
    for model in options.models:
        common = {"model": model, "limit": options.limit}
        yield {**common, "target": 1.0, "method": ORIGINAL, "seed": 0}
        for seed, method in itertools.product(range(options.seeds), options.methods):
            yield {**common, "target": options.target, "method": method, "seed": seed}


def measure(entry: zoo.Entry, key: Row, options: argparse.Namespace) -> Row:
    """Prune a model by a method and evaluate it."""
    if key["method"] == ORIGINAL:
        quality = zoo.quality(entry, entry.path, options.limit, options.threads)
        return {"metric": quality, "macs": 1.0, "activations": 1.0, "seconds": 0.0}
    settings = {"samples": SAMPLES.get(entry.name, USUAL_SAMPLES), **METHODS[key["method"]]}
    name = f"{entry.name}-{key['method']}-{key['target']:g}-{key['seed']}"
    name = re.sub(r",? ", "-", name)
    start, cpu_start = time.perf_counter(), time.process_time()
    with ExitStack() as stack:
        folder = options.runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        data, out = folder / f"{entry.name}-{settings['samples']}.npz", folder / f"{name}.onnx"
        if not data.exists():
            zoo.calibration_file(entry, settings["samples"], data)
        result = onnxprune.optimize(
            entry.path,
            out,
            run_dir=folder / f"{name}.run",
            overwrite=True,
            target=f"macs={key['target']:.0%}",
            data=str(data),
            repair=REPAIR,
            batch_size=BATCH.get(entry.name, USUAL_BATCH),
            round_to=1,
            seed=key["seed"],
            threads=options.threads,
            engine="none",
            **settings,
        )
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
        before, after = result.report.before, result.report.after
        return {
            "metric": zoo.quality(entry, out, options.limit, options.threads),
            "macs": after["macs"] / before["macs"],
            "activations": after["activation_bytes"] / before["activation_bytes"],
            "seconds": seconds,
            "cpu_s": cpu_s,
            "stages": {s.name: round(s.seconds, 1) for s in result.report.stages},
        }


def describe(row: Row) -> str:
    """Return a row as a line."""
    result = f"{row['metric']['value']:.4f} at {row['macs']:.2%} of the MACs"
    place = f"{row['model']:28} {row['method']:20} seed {row['seed']}"
    return f"{place}: {result} ({row['seconds']:.0f} s)"


def compare_with_random(rows: Sequence[Row]) -> str:
    """Return a sentence that names the methods whose mean is not above that of random channels."""
    worse = []
    for model, target in dict.fromkeys((r["model"], r["target"]) for r in rows):
        control = quality_values(rows, model, target, RANDOM)
        for method in METHODS:
            values = quality_values(rows, model, target, method)
            if method in (RANDOM, TUNED) or not (values and control):
                continue
            if mean(values) <= mean(control):
                worse.append(f"{method} on {model}")
    if worse:
        return f"Not better than random: {', '.join(worse)}."
    return "Every method is better than random on every model."


if __name__ == "__main__":
    main()
