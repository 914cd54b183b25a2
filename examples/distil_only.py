r"""Tune a pruned model without labels: it learns the outputs of its unpruned original.

    python examples/distil_only.py pruned.onnx original.onnx images/ tuned.onnx \
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

Data are what `--data` of the command line takes: a folder of images, .npz, .npy, or
FILE.py:FUNCTION. It also works for detectors and other models whose outputs are not class scores:
the losses `output` and `feature` compare tensors, not probabilities.
"""

from __future__ import annotations

import argparse

from onnxprune.data.dataset import open_data
from onnxprune.data.preprocess import Preprocess
from onnxprune.ir.io import load, save
from onnxprune.ir.runtime import Session
from onnxprune.tune.finetune import tune
from onnxprune.tune.settings import TuneSettings


def numbers(text: str) -> tuple[float, ...]:
    """Read numbers such as 0.1,0.2."""
    return tuple(float(n) for n in text.split(","))


def main() -> None:
    """Tune the model that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("pruned", "original", "data", "output"):
        parser.add_argument(name)
    parser.add_argument("--mean", type=numbers, default=(0.0,))
    parser.add_argument("--std", type=numbers, default=(1.0,))
    parser.add_argument(
        "--loss", default="kd+0.1*feature", help="kd, dist, output, feature, or a weighted sum"
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--samples", type=int, default=4096)
    chosen = parser.parse_args()
    pruned, original = load(chosen.pruned), load(chosen.original)
    data = open_data(
        chosen.data,
        Session(original).inputs,
        samples=chosen.samples,
        preprocess=Preprocess(mean=chosen.mean, std=chosen.std),
    )
    settings = TuneSettings(loss=chosen.loss, epochs=chosen.epochs, augment="flip")
    result = tune(pruned, data, settings, teacher=original)
    save(result.model, chosen.output, overwrite=True)
    print(f"held-out loss {-result.start_score:.4f} -> {-result.score:.4f}")


if __name__ == "__main__":
    main()
