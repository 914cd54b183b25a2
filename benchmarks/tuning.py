"""What tuning and sparsifying are worth on trained networks.

    python -m benchmarks.tuning sparsify                    # 30 % of the weights of every classifier, four ways
    python -m benchmarks.tuning tune --pruned r20.onnx      # a pruned cifar10_resnet20, 4,000 training images, random control

Claims: unstructured 30 % with scores from data and a refit costs at most one point; tuning a pruned network gains, and never ends below its start.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.zoo import Entry, Samples, add_option, calibration, open_zoo, score
from onnxprune.evaluate.data import open_labelled
from onnxprune.events import Event
from onnxprune.files import write_json
from onnxprune.model.io import Model, load, save
from onnxprune.model.runtime import Session
from onnxprune.sparsify.layout import OPS
from onnxprune.sparsify.weights import Settings as SparsitySettings
from onnxprune.sparsify.weights import masked, sparsify

TUNED = "cifar10_resnet20"
TRAINING = "cifar10_train_4000.npz"


def value(entry: Entry, model: Model, limit: int | None) -> float:
    """The entry's metric, mean over its evaluation files."""
    return float(np.mean([s.value for s in score(entry, model, limit=limit).values()]))


def bench_tune(zoo: Path, pruned: Path, losses: list[str], epochs: int, limit: int | None, out: Path | None) -> list[dict[str, Any]]:
    """A row a loss."""
    from onnxprune.tune.finetune import tune
    from onnxprune.tune.settings import Settings

    entry = open_zoo(zoo)[TUNED]
    teacher, start = load(entry.path), load(pruned)
    data = open_labelled(Samples(entry, TRAINING), Session(teacher).inputs)
    rows = []
    before = value(entry, start, limit)
    print(f"dense {100 * value(entry, teacher, limit):.2f}, start {100 * before:.2f}", flush=True)
    for loss in losses:
        began, used = time.monotonic(), time.process_time()
        settings = Settings(loss=loss, epochs=epochs, batch_size=64, augment="flip-shift", precision="bfloat16")
        result = tune(start, data, settings, teacher=teacher, on_event=show)
        after = value(entry, result.model, limit)
        row = {"loss": loss, "start": before, "tuned": after, "cpu_s": time.process_time() - used, "seconds": time.monotonic() - began}
        rows.append({**row, "validation": result.history, "settings": asdict(replace(settings, lr_scale={}))})
        print(f"{loss:12} {100 * before:.2f} -> {100 * after:.2f} in {row['cpu_s']:.0f} CPU s", flush=True)
        if out is not None:
            save(result.model, out, overwrite=True)
    return rows


def show(event: Event) -> None:
    """A line a validation."""
    if event.stage == "validate":
        print(f"  {event.detail}, {event.seconds:.0f} s", flush=True)


def main() -> None:
    """Run one benchmark, print its table and write it as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_option(parser)
    parser.add_argument("what", choices=["sparsify", "tune"])
    parser.add_argument("names", nargs="*", help="sparsify: entries (default: all classifiers)")
    parser.add_argument("--amount", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=128, help="calibration inputs")
    parser.add_argument("--limit", type=int, help="first samples of each evaluation file")
    parser.add_argument("--pruned", type=Path, help="tune: the pruned cifar10_resnet20")
    parser.add_argument("--loss", nargs="+", default=["kd", "ce"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, help="tune: where the last result goes")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.what == "tune" and chosen.pruned is None:
        parser.error("tune needs --pruned MODEL; onnxprune optimize makes one")
    if chosen.what == "sparsify":
        rows = bench_sparsify(chosen.zoo, chosen.names, chosen.amount, chosen.samples, chosen.limit)
    else:
        rows = bench_tune(chosen.zoo, chosen.pruned, chosen.loss, chosen.epochs, chosen.limit, chosen.out)
    if chosen.json:
        write_json(chosen.json, rows)


if __name__ == "__main__":
    main()
