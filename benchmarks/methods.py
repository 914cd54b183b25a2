"""The search methods against each other and against random channels, at the same share of MACs, on the same data, under the same repair.

    python -m benchmarks.methods --zoo ../shared/zoo --json methods.jsonl [--models NAME ...] [--methods NAME ...] [--seeds 3] [--runs FOLDER]

Each row: model, method, seed -> metric on the evaluation data, which chooses nothing, shares of MACs and of activation values that are left, seconds.
Calibration inputs come from the model's calibration data, without labels. A row that the JSON lines file holds is not run again, and with `--runs` a row
that was killed goes on from its run directory. The table at the end has the mean over seeds and half the range, the best of a line in bold, and says
whether every method beats random.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

import onnxprune
from benchmarks import zoo
from benchmarks.accuracy import quality

MODELS = (
    "cifar10_resnet56",
    "cifar10_resnet20",
    "imagenet_mobilenetv2_1.0_dq",
    "coco_yolofastestv2",
    "camvid_espnet",
)
RANDOM, TUNED = (
    "random",
    "layer-selection, 3 rounds tuned",
)  # the second only where --methods names it: its weights are trained, without labels
# name -> what it sets beside the target, the data and the repair, which are the same for all
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
        "samples": 1000,  # all that there are
    },
}
REPAIR = "least-squares"
SAMPLES = {"camvid_espnet": 60, "coco_yolofastestv2": 128}  # all that there are; elsewhere 256
USUAL_SAMPLES = 256
BATCH = {"camvid_espnet": 4}


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    zoo.add_option(parser)
    parser.add_argument("--json", type=Path, default=Path("methods.jsonl"))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument(
        "--methods", nargs="*", default=[m for m in METHODS if m != TUNED], choices=list(METHODS)
    )
    parser.add_argument(
        "--target", type=float, default=0.6, help="share of the MACs that may remain"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--limit", type=int, help="evaluate on the first N samples only; said in the row"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--runs",
        type=Path,
        help="keep models, plans and reports here; a row that was killed goes on from there",
    )
    options = parser.parse_args()
    rows = (
        [json.loads(line) for line in options.json.read_text().splitlines()]
        if options.json.exists()
        else []
    )
    done = {key(row) for row in rows}
    entries = zoo.open_zoo(options.zoo)
    for row in wanted(options):
        if key(row) in done:
            continue
        row.update(measure(entries[row["model"]], row, options))
        rows.append(row)
        with options.json.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(line(row), flush=True)
    print("\n".join(table(rows)))


def wanted(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows; of each model the whole one first."""
    for model in options.models:
        yield {"model": model, "target": 1.0, "method": "whole", "seed": 0, "limit": options.limit}
        for seed, method in itertools.product(range(options.seeds), options.methods):
            yield {
                "model": model,
                "target": options.target,
                "method": method,
                "seed": seed,
                "limit": options.limit,
            }


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a row that row."""
    return row["model"], row["target"], row["method"], row["seed"], row["limit"]


def measure(
    entry: zoo.Entry, row: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Cut a model by a method and evaluate it."""
    if row["method"] == "whole":
        return {
            "metric": quality(entry, entry.path, options),
            "macs": 1.0,
            "activations": 1.0,
            "seconds": 0.0,
        }
    how = {"samples": SAMPLES.get(entry.name, USUAL_SAMPLES), **METHODS[row["method"]]}
    samples, name = (
        how["samples"],
        f"{entry.name}-{row['method']}-{row['target']:g}-{row['seed']}".replace(", ", "-").replace(
            " ", "-"
        ),
    )
    began, used = time.perf_counter(), time.process_time()
    with ExitStack() as stack:
        folder = options.runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        data, out = folder / f"{entry.name}-{samples}.npz", folder / f"{name}.onnx"
        if not data.exists():
            zoo.calibration_file(entry, samples, data)
        result = onnxprune.optimize(
            entry.path,
            out,
            run_dir=folder / f"{name}.run",
            overwrite=True,
            target=f"macs={row['target']:.0%}",
            data=str(data),
            repair=REPAIR,
            batch_size=BATCH.get(entry.name, 32),
            round_to=1,
            seed=row["seed"],
            threads=options.threads,
            engine="none",
            **how,
        )
        spent = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - used}
        before, after = result.report.before, result.report.after
        shares = {
            "macs": after["macs"] / before["macs"],
            "activations": after["activation_bytes"] / before["activation_bytes"],
        }
        return {
            "metric": quality(entry, out, options),
            **shares,
            **spent,
            "stages": {s.name: round(s.seconds, 1) for s in result.report.stages},
        }


def line(row: Mapping[str, Any]) -> str:
    """A row in words."""
    return f"{row['model']:28} {row['method']:20} seed {row['seed']}: {row['metric']['value']:.4f} at {row['macs']:.2%} of the MACs ({row['seconds']:.0f} s)"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line a model, a column a method; and a line on what did not beat random."""
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    lines = [
        "| model | MACs | whole | " + " | ".join(methods) + " |",
        "| --- " * (3 + len(methods)) + "|",
    ]
    beaten: list[str] = []
    for model in dict.fromkeys(r["model"] for r in rows):
        whole = next(
            (r["metric"] for r in rows if r["model"] == model and r["method"] == "whole"), None
        )
        for target in sorted(
            {r["target"] for r in rows if r["model"] == model and r["method"] != "whole"},
            reverse=True,
        ):
            values = {
                m: [
                    r["metric"]["value"]
                    for r in rows
                    if (r["model"], r["target"], r["method"]) == (model, target, m)
                ]
                for m in methods
            }
            means = {m: mean(v) for m, v in values.items() if v}
            head = (
                f"{whole['value']:.4f} (se {whole['standard_error'] or 0:.4f}, n {whole['n']})"
                if whole
                else ""
            )
            lines.append(
                f"| {model} | {target:.0%} | {head} | "
                + " | ".join(_cell(v, means.get(m), means) for m, v in values.items())
                + " |"
            )
            beaten += [
                f"{m} on {model}"
                for m, value in means.items()
                if RANDOM in means and m not in (RANDOM, TUNED) and value <= means[RANDOM]
            ]
    return [
        *lines,
        "",
        f"Not better than random: {', '.join(beaten)}."
        if beaten
        else "Every method is better than random on every model.",
    ]


def _cell(values: list[float], value: float | None, means: Mapping[str, float]) -> str:
    """Mean and half the range; bold where it is the line's best."""
    if value is None:
        return ""
    spread = f" ± {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
    return f"**{value:.4f}**{spread}" if value == max(means.values()) else f"{value:.4f}{spread}"


if __name__ == "__main__":
    main()
