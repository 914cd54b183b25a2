"""What tuning a pruned network is worth: cifar10_resnet20 at half of its MACs, 4,000 training images, at most ten CPU minutes.

    python -m benchmarks.tuning --zoo ../shared/zoo --runs FOLDER [--ways labels distil ...] [--epochs 15]

labels and distil tune the repaired result of `optimize` (with labels and the unpruned network as teacher; with the teacher alone); "while pruning" cuts the
whole network while it learns; random is the control: drawn channels, the same repair, the same tuning as labels. Accuracy is of test images that choose
nothing. FOLDER keeps models, checkpoints and a JSON file; what is in it is not done again, and a run that was killed goes on. Exit status 1 where a tuned
network is below its start.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxprune
from benchmarks.zoo import Entry, Samples, add_option, calibration_file, open_zoo, score
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.walk import analyze
from onnxprune.data.labeled import open_labeled
from onnxprune.events import Event
from onnxprune.files import write_json
from onnxprune.ir.io import Model, load, save
from onnxprune.ir.runtime import Session
from onnxprune.tune.finetune import tune
from onnxprune.tune.fisher import Pruning
from onnxprune.tune.pruning import prune_and_tune
from onnxprune.tune.settings import TuneSettings

TUNED, TRAINING = "cifar10_resnet20", "cifar10_train_4000.npz"
SAMPLES = 512  # calibration images of the repair
IN_LOOP = "while pruning"


@dataclass(frozen=True)
class Way:
    """loss: of the tuning; start: options of `optimize` beside target and data, None where the whole network is pruned while it learns."""

    loss: str
    start: Mapping[str, Any] | None


WAYS = {
    "labels": Way("kd+0.5*ce", {}),
    "distil": Way("kd", {}),
    IN_LOOP: Way("kd+0.5*ce", None),
    "random": Way("kd+0.5*ce", {"criterion": "random", "allocate": "uniform"}),
}


def top1(entry: Entry, model: Model, limit: int | None) -> float:
    """Mean over the evaluation files."""
    return float(np.mean([s.value for s in score(entry, model, limit=limit).values()]))


def pruned(entry: Entry, way: Way, chosen: argparse.Namespace) -> Path:
    """The repaired start, made once for all ways that begin with it."""
    options = dict(way.start or {})
    place = chosen.runs / f"{options.get('criterion', 'default')}.onnx"
    data = calibration_file(entry, SAMPLES, chosen.runs / "calibration.npz")
    if not place.exists():
        onnxprune.optimize(
            entry.path,
            place,
            data=str(data),
            samples=SAMPLES,
            flip=True,
            target=chosen.target,
            round_to=1,
            engine="none",
            **options,
        )
    return place


def row(entry: Entry, name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """One way."""
    way, whole = WAYS[name], load(entry.path)
    data = open_labeled(Samples(entry, TRAINING), Session(whole).inputs)
    settings = TuneSettings(
        loss=way.loss,
        epochs=chosen.epochs,
        batch_size=64,
        augment="flip-shift",
        precision=chosen.precision,
    )
    place = chosen.runs / f"{name.replace(' ', '-')}.checkpoint"
    analysis = analyze(whole)
    if way.start is None:
        began = time.process_time()
        limits = {
            "macs": float(chosen.target.partition("=")[2].rstrip("%")) / 100 * analysis.cost().macs
        }
        found = prune_and_tune(
            analysis,
            data,
            Constraints(limits),
            settings,
            Pruning(chosen.interval),
            checkpoint=place,
            on_event=show,
        )
        result, start = found.result, None
    else:
        start = load(pruned(entry, way, chosen))
        began = time.process_time()
        result = tune(start, data, settings, teacher=whole, checkpoint=place, on_event=show)
    cpu_s = time.process_time() - began
    save(result.model, chosen.runs / f"{name.replace(' ', '-')}.tuned.onnx", overwrite=True)
    return {
        "way": name,
        "dense": top1(entry, whole, chosen.limit),
        "start": None if start is None else top1(entry, start, chosen.limit),
        "tuned": top1(entry, result.model, chosen.limit),
        "macs": analyze(result.model).cost().macs / analysis.cost().macs,
        "cpu_s": round(cpu_s),
        "validation": [result.start_score, result.score],
        "epochs": len(result.history) - 1,
        "history": [dict(h) for h in result.history],
    }


def show(event: Event) -> None:
    """A line a validation."""
    if event.stage == "validate":
        print(f"  {event.detail}, {event.seconds:.0f} s", flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Top-1 in percent."""
    lines = [
        "| tuning | MACs | whole | start | tuned | CPU minutes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        start = "" if r["start"] is None else f"{100 * r['start']:.2f}"
        lines.append(
            f"| {r['way']} | {r['macs']:.0%} | {100 * r['dense']:.2f} | {start} | {100 * r['tuned']:.2f} | {r['cpu_s'] / 60:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_option(parser)
    parser.add_argument("--runs", type=Path, default=Path("tuning"), metavar="FOLDER")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--target", default="macs=50%")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument(
        "--interval", type=int, default=10, help="while pruning: steps between two cuts"
    )
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--limit", type=int, help="first samples of each evaluation file")
    chosen = parser.parse_args()
    chosen.runs.mkdir(parents=True, exist_ok=True)
    place = chosen.runs / "tuning.json"
    rows = json.loads(place.read_text()) if place.exists() else []
    for name in chosen.ways:
        if name not in {r["way"] for r in rows}:
            print(name, flush=True)
            rows.append(row(open_zoo(chosen.zoo)[TUNED], name, chosen))
            write_json(place, rows)
    print(table(rows))
    return int(any(r["start"] is not None and r["tuned"] < r["start"] for r in rows))


if __name__ == "__main__":
    raise SystemExit(main())
