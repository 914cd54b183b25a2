"""Runs of a part inside and outside of a model: what its inputs are, and whether both agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune.data.dataset import Data
from onnxprune.errors import OutputError, VerificationError
from onnxprune.files import staging
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.run.recipe import Recipe

# of the largest value, as for cuts of float32 models
TOLERANCE = 1e-5
_SAMPLES = 16  # inputs that a joined model is run on


@dataclass(frozen=True)
class PartCheck:
    """Comparison of a part with the same nodes inside of a model.

    Attributes
    ----------
    samples
        Number of inputs.
    difference
        Largest difference of the part's outputs, relative to their largest value.
    """

    samples: int
    difference: float


def check_part(model: Model, part: Model, data: Data, recipe: Recipe) -> PartCheck:
    """Run a model, and its part on the same tensors; compare the part's outputs.

    Raises
    ------
    VerificationError
        They differ by more than the recipe's tolerance, by default TOLERANCE.
    """
    inputs, outputs = _list_ends(part)
    # without fusion, the same operators round the same way in both graphs
    whole = Session(model, [*inputs, *outputs], threads=recipe.compute_threads, optimize=False)
    alone = Session(part, threads=recipe.compute_threads, optimize=False)
    samples, difference = 0, 0.0
    for feeds in data.batches(min(recipe.batch_size, _SAMPLES)):
        values = {**feeds, **whole.run(feeds)}
        results = alone.run({name: values[name] for name in inputs})
        for name in outputs:
            difference = max(difference, _measure(values[name], results[name]))
        samples += feeds.samples
        if samples >= _SAMPLES:
            break
    tolerance = recipe.tolerance or TOLERANCE
    # a comparison with NaN is false
    if not difference <= tolerance:
        raise VerificationError(
            "join-differs",
            f"the part's outputs differ by {difference:.2g} inside of the model and on their own, "
            f"more than {tolerance:.2g}: the model reads or computes other tensors than the part",
        )
    return PartCheck(samples, difference)


def record_inputs(model: Model, part: Model, data: Data, recipe: Recipe) -> dict[str, np.ndarray]:
    """Return the inputs of a part for all inputs of the model, as calibration data for it."""
    inputs, _ = _list_ends(part)
    session = Session(model, inputs, threads=recipe.compute_threads)

    def run() -> Iterator[dict[str, np.ndarray]]:
        for feeds in data.batches(recipe.batch_size):
            # inputs of the model itself may be inputs of the part as well
            yield {**feeds, **session.run(feeds)}

    rows = list(run())
    return {name: np.concatenate([row[name] for row in rows]) for name in inputs}


def write_arrays(path: str, arrays: Mapping[str, np.ndarray], overwrite: bool) -> None:
    """Write an .npz file.

    Raises
    ------
    OutputError
        It exists and `overwrite` is not set, or its name has another suffix.
    """
    if not path.endswith(".npz"):
        raise OutputError("output-name", f"{path}: arrays are written to a file named .npz")
    if Path(path).exists() and not overwrite:
        raise OutputError("output-exists", f"{path} exists; pass --overwrite to replace it")
    with staging() as files, files.file(Path(path)) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # a name may be that of a keyword


def _list_ends(part: Model) -> tuple[Sequence[str], Sequence[str]]:
    """Return the names of inputs and outputs."""
    graph = part.proto.graph
    inputs = [info.name for info in graph.input if info.name not in part.weights]
    return inputs, [info.name for info in graph.output]


def _measure(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference relative to the largest value; infinity for other shapes."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape:
        return float("inf")
    if one.size == 0 or one.dtype.kind not in "biuf":
        return 0.0 if np.array_equal(one, other) else float("inf")
    size = float(np.max(np.abs(one.astype(np.float64))))
    largest = float(np.max(np.abs(one.astype(np.float64) - other.astype(np.float64))))
    return largest / size if size else largest
