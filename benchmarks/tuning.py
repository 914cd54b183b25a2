"""Accuracy gained by tuning a pruned network: cifar10_resnet20 at half of its MACs.

    python -m benchmarks.tuning --zoo ../shared/zoo --runs FOLDER [--methods labels distil ...]
        [--epochs 15]

Tuning uses 4,000 training images and at most ten CPU minutes. labels and distil tune the repaired
result of `optimize`, with labels and the unpruned network as teacher or with the teacher alone;
"while pruning" prunes the unpruned network during tuning; random is the control: random channels,
the same repair, the same tuning as labels. Accuracy is that of test images that no method sees.
FOLDER keeps models, checkpoints and rows; rows are not measured again, and an interrupted run
resumes. The exit status is 1 if a tuned network is worse than before tuning.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxprune
from benchmarks.runner import Row, complete, make_parser, markdown
from benchmarks.zoo import Entry, Samples, calibration_file, open_zoo, score
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.walk import analyze
from onnxprune.data.labeled import open_labeled
from onnxprune.events import Event
from onnxprune.ir.io import Model, load, save
from onnxprune.ir.runtime import Session
from onnxprune.tune.finetune import tune
from onnxprune.tune.fisher import Pruning
from onnxprune.tune.pruning import prune_and_tune
from onnxprune.tune.settings import TuneSettings

MODEL, TRAINING = "cifar10_resnet20", "cifar10_train_4000.npz"
SAMPLES = 512  # calibration images of the repair


@dataclass(frozen=True)
class Method:
    """A way to tune.

    Attributes
    ----------
    loss
        Loss of the tuning.
    start
        Options of `optimize` besides target and data; None to prune during tuning.
    """

    loss: str
    start: Mapping[str, Any] | None


METHODS = {
    "labels": Method("kd+0.5*ce", {}),
    "distil": Method("kd", {}),
    "while pruning": Method("kd+0.5*ce", None),
    "random": Method("kd+0.5*ce", {"criterion": "random", "allocate": "uniform"}),
}


def top1(entry: Entry, model: Model, limit: int | None) -> float:
    """Return the mean accuracy over the evaluation files."""
    return float(np.mean([s.value for s in score(entry, model, limit=limit).values()]))


def prune(entry: Entry, start: Mapping[str, Any], options: argparse.Namespace) -> Path:
    """Return the repaired model to tune, which methods with equal options share."""
    path: Path = options.runs / f"{start.get('criterion', 'default')}.onnx"
    data = calibration_file(entry, SAMPLES, options.runs / "calibration.npz")
    if not path.exists():
        onnxprune.optimize(
            entry.path,
            path,
            data=str(data),
            samples=SAMPLES,
            flip=True,
            target=options.target,
            round_to=1,
            engine="none",
            **start,
        )
    return path


def measure(entry: Entry, name: str, options: argparse.Namespace) -> Row:
    """Tune by a method and evaluate."""
    method, original = METHODS[name], load(entry.path)
    data = open_labeled(Samples(entry, TRAINING), Session(original).inputs)
    settings = TuneSettings(
        loss=method.loss,
        epochs=options.epochs,
        batch_size=64,
        augment="flip-shift",
        precision=options.precision,
    )
    prefix = options.runs / name.replace(" ", "-")
    analysis = analyze(original)
    shared = {"checkpoint": prefix.with_suffix(".checkpoint"), "on_event": show}
    if method.start is None:
        pruned = None
        share = float(options.target.partition("=")[2].rstrip("%")) / 100
        limits = Constraints({"macs": share * analysis.cost().macs})
        schedule = Pruning(options.interval)
        start = time.process_time()
        result = prune_and_tune(analysis, data, limits, settings, schedule, **shared).result
    else:
        pruned = load(prune(entry, method.start, options))
        start = time.process_time()
        result = tune(pruned, data, settings, teacher=original, **shared)
    cpu_s = time.process_time() - start
    save(result.model, prefix.with_suffix(".tuned.onnx"), overwrite=True)
    return {
        "original": top1(entry, original, options.limit),
        "start": None if pruned is None else top1(entry, pruned, options.limit),
        "tuned": top1(entry, result.model, options.limit),
        "macs": analyze(result.model).cost().macs / analysis.cost().macs,
        "cpu_s": round(cpu_s),
        "validation": [result.start_score, result.score],
        "epochs": len(result.history) - 1,
        "history": [dict(h) for h in result.history],
    }


def show(event: Event) -> None:
    """Print a line per validation."""
    if event.stage == "validate":
        print(f"  {event.detail}, {event.seconds:.0f} s", flush=True)


def describe(row: Row) -> str:
    """Return a row as a line."""
    return f"{row['method']}: {100 * row['tuned']:.2f} % ({row['cpu_s']:.0f} CPU s)"


def table(rows: Sequence[Row]) -> str:
    """Return top-1 in percent."""
    lines = []
    for row in rows:
        start = "" if row["start"] is None else f"{100 * row['start']:.2f}"
        original, tuned = (f"{100 * row[k]:.2f}" for k in ("original", "tuned"))
        minutes = f"{row['cpu_s'] / 60:.1f}"
        lines.append([row["method"], f"{row['macs']:.0%}", original, start, tuned, minutes])
    return markdown(["tuning", "MACs", "original", "start", "tuned", "CPU minutes"], lines)


def main() -> int:
    """Measure missing rows and print the table."""
    parser = make_parser(__doc__, "zoo", "limit")
    parser.add_argument("--runs", type=Path, default=Path("tuning"), metavar="FOLDER")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--target", default="macs=50%")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--interval", type=int, default=10, help="steps between two prunings")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    entry = open_zoo(options.zoo)[MODEL]
    rows = complete(
        options.runs / "tuning.jsonl",
        ({"method": name} for name in options.methods),
        lambda key: measure(entry, key["method"], options),
        describe,
    )
    print(table(rows))
    return int(any(row["start"] is not None and row["tuned"] < row["start"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
