"""What zeros inside the weights cost trained classifiers, with drawn weights as control.

    python -m benchmarks.sparsity --zoo ../shared/zoo --json sparsity.json [--amount 0.3] [NAME ...] [--ways default magnitude ...]

The share is of the weights of all convolutions and products. Calibration inputs come from the entry's calibration data, without labels; accuracy is
measured on its evaluation data, which choose nothing. A row that the JSON file holds is not run again. Exit status 1 where the default loses more than
a point anywhere.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.zoo import Entry, add_option, calibration, open_zoo, score
from onnxprune.files import write_json
from onnxprune.ir.io import Model, load
from onnxprune.sparsify.layout import OPS, linear_weights
from onnxprune.sparsify.masks import count_zeros
from onnxprune.sparsify.weights import SparsifySettings, apply_masks, sparsify

DENSE, RANDOM, DEFAULT = "dense", "random", "default"
# name -> settings beside the share; None: no data
WAYS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "obs, each tensor": {"method": "obs", "scope": "tensor"},
    "magnitude, each tensor, refitted": {"method": "magnitude", "scope": "tensor"},
    "magnitude, each tensor": {"method": "magnitude", "scope": "tensor", "refit": False},
}
MOST_LOSS = 0.01


class Arrays:
    """Calibration inputs in memory."""

    def __init__(self, name: str, inputs: np.ndarray) -> None:
        self.name, self.inputs = name, inputs

    def batches(self, batch_size: int) -> Any:
        """Feeds in order."""
        for begin in range(0, len(self.inputs), batch_size):
            yield {self.name: self.inputs[begin : begin + batch_size]}


def random_control(model: Model, amount: float, seed: int = 0) -> Model:
    """The same share of each tensor, drawn."""
    rng = np.random.default_rng(seed)
    shapes = {t.tensor: model.weights[t.tensor].shape for t in linear_weights(model, OPS)}
    return apply_masks(
        model,
        {
            n: rng.permutation(
                np.arange(math.prod(s)) >= count_zeros(amount, math.prod(s))
            ).reshape(s)
            for n, s in shapes.items()
        },
    )


def row(entry: Entry, way: str, amount: float, samples: int, limit: int | None) -> dict[str, Any]:
    """One model, one way."""
    model, began, zeros = load(entry.path), time.process_time(), 0.0
    if way == RANDOM:
        model = random_control(model, amount)
    elif way != DENSE:
        made = sparsify(
            model,
            SparsifySettings(amount=amount, ops=OPS, **WAYS[way]),
            Arrays(entry.input[0], calibration(entry, samples)),
        )
        model, zeros = made.model, made.report.of_weights
    cpu_s = time.process_time() - began
    found = {file: s.value for file, s in score(entry, model, limit=limit).items()}
    return {
        "model": entry.name,
        "way": way,
        "amount": amount,
        "samples": samples,
        "limit": limit,
        "value": float(np.mean(list(found.values()))),
        "files": found,
        "zeros": zeros,
        "cpu_s": round(cpu_s, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Top-1 in percent, a line a model."""
    values = {(r["model"], r["way"]): r["value"] for r in rows}
    ways = [w for w in (DENSE, *WAYS, RANDOM) if any(r["way"] == w for r in rows)]
    lines = ["| model | " + " | ".join(ways) + " |", "| --- |" + " --- |" * len(ways)]
    for model in dict.fromkeys(r["model"] for r in rows):
        lines.append(
            f"| {model} | "
            + " | ".join(
                f"{100 * values[model, w]:.2f}" if (model, w) in values else "" for w in ways
            )
            + " |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_option(parser)
    parser.add_argument("names", nargs="*", help="entries (default: all classifiers)")
    parser.add_argument(
        "--ways", nargs="*", default=[DENSE, *WAYS, RANDOM], choices=[DENSE, *WAYS, RANDOM]
    )
    parser.add_argument("--amount", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=500, help="calibration inputs, at most")
    parser.add_argument("--limit", type=int, help="first samples of each evaluation file")
    parser.add_argument("--json", type=Path, default=Path("sparsity.json"))
    chosen = parser.parse_args()
    rows = json.loads(chosen.json.read_text()) if chosen.json.exists() else []
    done = {(r["model"], r["way"], r["amount"], r["samples"], r["limit"]) for r in rows}
    for name, entry in open_zoo(chosen.zoo).items():
        if entry.task not in ("classify", "person") or chosen.names and name not in chosen.names:
            continue
        for way in chosen.ways:
            if (name, way, chosen.amount, chosen.samples, chosen.limit) not in done:
                rows.append(row(entry, way, chosen.amount, chosen.samples, chosen.limit))
                write_json(chosen.json, rows)
                print(
                    f"{name:30} {way:34} {100 * rows[-1]['value']:.2f}  {rows[-1]['cpu_s']:.0f} CPU s",
                    flush=True,
                )
    rows = [
        r
        for r in rows
        if (r["amount"], r["samples"], r["limit"]) == (chosen.amount, chosen.samples, chosen.limit)
    ]
    print(table(rows))
    values = {(r["model"], r["way"]): r["value"] for r in rows}
    lost = {
        m: values[m, DENSE] - v
        for (m, w), v in values.items()
        if w == DEFAULT and (m, DENSE) in values
    }
    return int(any(v > MOST_LOSS for v in lost.values()))


if __name__ == "__main__":
    raise SystemExit(main())
