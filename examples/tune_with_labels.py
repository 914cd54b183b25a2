r"""Tune a pruned classifier with labels and its unpruned original as teacher.

    onnxprune optimize resnet20.onnx -o pruned.onnx --data images.npz \
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    python examples/tune_with_labels.py pruned.onnx resnet20.onnx train.npz tuned.onnx \
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

train.npz holds `images` (uint8, n x height x width x 3) and `labels`. In several processes:

    torchrun --nproc-per-node 2 examples/tune_with_labels.py ...
"""

from __future__ import annotations

import argparse
import os

from onnxprune.data.labeled import open_labeled
from onnxprune.data.preprocess import Preprocess
from onnxprune.events import Event
from onnxprune.ir.io import load, save
from onnxprune.ir.runtime import Session
from onnxprune.tune.finetune import tune
from onnxprune.tune.settings import TuneSettings


def numbers(text: str) -> tuple[float, ...]:
    """Read numbers such as 0.1,0.2."""
    return tuple(float(n) for n in text.split(","))


def show(event: Event) -> None:
    """Print one line per validation, and the remaining time."""
    if event.stage == "validate":
        print(event.detail, flush=True)
    elif event.left_s is not None:
        print(f"{event.share:.0%}, {event.left_s:.0f} s left, {event.detail}", end="\r", flush=True)


def main() -> None:
    """Tune the model that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("pruned", "original", "data", "output"):
        parser.add_argument(name)
    parser.add_argument("--mean", type=numbers, default=(0.0,))
    parser.add_argument("--std", type=numbers, default=(1.0,))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--checkpoint", help="progress file; the same command resumes from it")
    chosen = parser.parse_args()
    pruned, original = load(chosen.pruned), load(chosen.original)
    data = open_labeled(
        chosen.data,
        Session(original).inputs,
        preprocess=Preprocess(mean=chosen.mean, std=chosen.std),
    )
    settings = TuneSettings(loss="kd+0.5*ce", epochs=chosen.epochs, augment="flip-shift")
    result = tune(
        pruned, data, settings, teacher=original, checkpoint=chosen.checkpoint, on_event=show
    )
    # of several processes only the first writes
    if os.environ.get("RANK", "0") == "0":
        save(result.model, chosen.output, overwrite=True)
        print(
            f"held-out score {result.start_score:.4f} -> {result.score:.4f} "
            f"(best epoch {result.epoch})"
        )


if __name__ == "__main__":
    main()
