"""Accuracy of trained classifiers with zeros in their weights, and with random zeros as control.

    python -m benchmarks.sparsity --zoo ../shared/zoo --json sparsity.jsonl
        [--models NAME ...] [--amount 0.3] [--methods default ...]

The amount is the share of zeros in the weights of all convolutions and matrix products. Calibration
inputs come from the model's calibration data, without labels; accuracy is measured on evaluation
data that no method sees. Rows in the JSON Lines file are not measured again. The exit status is 1
if the default loses more than MOST_LOSS on any model.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runner import Row, complete, make_parser, markdown
from benchmarks.zoo import Entry, calibration, open_zoo, score
from onnxprune.ir.io import Model, load
from onnxprune.sparsify.layout import OPS, linear_weights
from onnxprune.sparsify.masks import count_zeros
from onnxprune.sparsify.weights import SparsifySettings, apply_masks, sparsify

DENSE, RANDOM, DEFAULT = "dense", "random", "default"
# settings besides the amount
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "obs, each tensor": {"method": "obs", "scope": "tensor"},
    "magnitude, each tensor, refitted": {"method": "magnitude", "scope": "tensor"},
    "magnitude, each tensor": {"method": "magnitude", "scope": "tensor", "refit": False},
}
METHODS = [DENSE, *SETTINGS, RANDOM]
CLASSIFIERS = ("classify", "person")
MOST_LOSS = 0.01


class Arrays:
    """Calibration inputs in memory."""

    def __init__(self, name: str, inputs: np.ndarray) -> None:
        self.name, self.inputs = name, inputs

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield the inputs in order."""
        for start in range(0, len(self.inputs), batch_size):
            yield {self.name: self.inputs[start : start + batch_size]}


def zero_randomly(model: Model, amount: float, seed: int = 0) -> Model:
    """Return the model with the same share of zeros in each tensor, at random places."""
    rng = np.random.default_rng(seed)
    masks = {}
    for weight in linear_weights(model, OPS):
        shape = model.weights[weight.tensor].shape
        size = math.prod(shape)
        kept = np.arange(size) >= count_zeros(amount, size)
        masks[weight.tensor] = rng.permutation(kept).reshape(shape)
    return apply_masks(model, masks)


def measure(entry: Entry, key: Row) -> Row:
    """Set weights of a model to zero and evaluate it."""
    model, method, zeros = load(entry.path), key["method"], 0.0
    start = time.process_time()
    if method == RANDOM:
        model = zero_randomly(model, key["amount"])
    elif method != DENSE:
        settings = SparsifySettings(amount=key["amount"], ops=OPS, **SETTINGS[method])
        inputs = Arrays(entry.input[0], calibration(entry, key["samples"]))
        result = sparsify(model, settings, inputs)
        model, zeros = result.model, result.report.of_weights
    cpu_s = time.process_time() - start
    files = {file: s.value for file, s in score(entry, model, limit=key["limit"]).items()}
    value = float(np.mean(list(files.values())))
    return {"value": value, "files": files, "zeros": zeros, "cpu_s": round(cpu_s, 1)}


def make_keys(options: argparse.Namespace, entries: Mapping[str, Entry]) -> Iterator[Row]:
    """Yield what identifies each row."""
    for name, entry in entries.items():
        if entry.task not in CLASSIFIERS or (options.models and name not in options.models):
            continue
        for method in options.methods:
            yield {"model": name, "method": method, **settings_of(options)}


def settings_of(options: argparse.Namespace) -> Row:
    """Return what all rows of a table share."""
    return {"amount": options.amount, "samples": options.samples, "limit": options.limit}


def describe(row: Row) -> str:
    """Return a row as a line."""
    value = f"{100 * row['value']:.2f}  {row['cpu_s']:.0f} CPU s"
    return f"{row['model']:30} {row['method']:34} {value}"


def table(rows: Sequence[Row]) -> str:
    """Return top-1 in percent, a line per model."""
    values = {(row["model"], row["method"]): f"{100 * row['value']:.2f}" for row in rows}
    columns = [m for m in METHODS if any(row["method"] == m for row in rows)]
    models = dict.fromkeys(row["model"] for row in rows)
    lines = [[model, *(values.get((model, m), "") for m in columns)] for model in models]
    return markdown(["model", *columns], lines)


def main() -> int:
    """Measure missing rows and print the table."""
    parser = make_parser(__doc__, "zoo", "models", "limit", json=Path("sparsity.jsonl"))
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--amount", type=float, default=0.3, help="share of zeros")
    parser.add_argument("--samples", type=int, default=500, help="most calibration inputs")
    options = parser.parse_args()
    entries = open_zoo(options.zoo)
    rows = complete(
        options.json,
        make_keys(options, entries),
        lambda key: measure(entries[key["model"]], key),
        describe,
    )
    shared = settings_of(options)
    rows = [row for row in rows if all(row[k] == v for k, v in shared.items())]
    print(table(rows))
    values = {(row["model"], row["method"]): row["value"] for row in rows}
    losses = [
        dense - values[model, DEFAULT]
        for (model, method), dense in values.items()
        if method == DENSE and (model, DEFAULT) in values
    ]
    return int(any(loss > MOST_LOSS for loss in losses))


if __name__ == "__main__":
    raise SystemExit(main())
