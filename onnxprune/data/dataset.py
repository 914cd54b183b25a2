"""Calibration data: samples of any source, checked, in batches that the model takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.inputs import Inputs, read_inputs
from onnxprune.data.preprocess import DEFAULT, Preprocess
from onnxprune.data.sources import Source, open_source
from onnxprune.errors import DataError, UsageError

CHECKED_BYTES = (
    64 << 20
)  # of samples that are checked when data are opened; the rest is checked when it is read

__all__ = ["Data", "Preprocess", "flips", "gather", "open_data", "split", "synthetic"]


@dataclass(frozen=True, eq=False)
class Data:
    """Chosen samples of a source, in a fixed order.

    chosen: their indices in the source (labels that lie beside the inputs are found by them); seed: that chose them;
    flipped: each sample is followed by its mirror image.

    Every pass gives the same arrays. At most one batch is in memory.
    """

    source: Source
    inputs: Inputs
    chosen: tuple[int, ...]
    seed: int = 0
    flipped: bool = False

    @property
    def samples(self) -> int:
        """Samples in one pass, mirrored ones included."""
        return len(self.chosen) * (2 if self.flipped else 1)

    @property
    def warning(self) -> str | None:
        """What these data cost, to be shown to the user; None where there is nothing to say."""
        return self.source.warning

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Feeds by input name, in the model's types.

        A model with a fixed batch size gets batches of exactly that size whatever `batch_size` says, and one whose inputs have no common
        batch axis gets one sample at a time. Else a batch has `batch_size` samples, less at the end and where the sizes of samples change.

        Raises
        ------
        DataError
            A sample cannot be read, does not fit the model, or has NaN or infinity.
        UsageError
            `batch_size` is below 1.
        """
        if batch_size < 1:
            raise UsageError("batch-size", f"batch size must be at least 1, not {batch_size}")
        size = self.inputs.batch or batch_size
        waiting: list[dict[str, np.ndarray]] = []
        for where, sample in self._read():
            if waiting and not self.inputs.stackable(waiting[0], sample):
                if self.inputs.batch is not None:
                    raise DataError(
                        "data-shape",
                        f"{where} has another size than samples before it; the model takes batches of {size}: make them equal",
                    )
                yield self.inputs.stack(waiting)
                waiting = []
            waiting.append(sample)
            if len(waiting) == size:
                yield self.inputs.stack(waiting)
                waiting = []
        if waiting:
            yield self.inputs.stack(waiting)

    def describe(self) -> str:
        """One line: how many, of how many, of what, chosen how."""
        of = "" if len(self.chosen) == self.source.count else f" of {self.source.count}"
        mirrored = ", each also mirrored" if self.flipped else ""
        return f"{len(self.chosen)}{of} {self.source.describe()}{mirrored}, seed {self.seed}"

    def fingerprint(self) -> str:
        """Hex sha256 of what the batches depend on: stored content, choice and order, preprocessing, the model's inputs. Read once."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        parts = [
            self.source.digest(self.chosen),
            self.inputs.signature(),
            self.inputs.batch,
            repr(self.inputs.preprocess),
            self.flipped,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _read(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Checked samples, mirrored copies after each."""
        for where, raw in self.source.read(self.chosen):
            sample = self.inputs.sample(raw, where)
            yield where, sample
            if self.flipped:
                yield where, _mirror(sample, self.inputs)


def open_data(
    spec: str | Path | None,
    inputs: Mapping[str, tuple[Sequence[Any], str]],
    *,
    samples: int = 256,
    seed: int = 0,
    preprocess: Preprocess = DEFAULT,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Data:
    """Calibration data for a model.

    Parameters
    ----------
    spec
        A folder of images; .npz or .npy, or a folder of them; FILE.py:FUNCTION; None or "synthetic" for random inputs;
        or NAME:LOCATION with a name of `onnxprune.data.DATA_SOURCES`.
    inputs
        name -> (shape, onnxruntime's type string), as `Session.inputs` has it.
    samples
        At most so many, chosen at random by `seed` (from a loader: the first). For a model with a fixed batch size b, a multiple of b and at least b.
    preprocess
        For images and for uint8 arrays of images that feed a float input. Float arrays are taken as they are.
    shapes
        name -> whole shape for inputs with dynamic sizes. A batch size that is given here is fixed.

    Raises
    ------
    DataError
        Nothing there, or it does not fit the model. The first 64 MB of samples are checked here, others when they are read.
    UsageError
        An option makes no sense.
    MissingExtraError
        Images without Pillow.
    """
    if samples < 1:
        raise UsageError("samples", f"samples must be at least 1, not {samples}")
    known = read_inputs(inputs, preprocess, shapes)
    samples = max(samples, known.batch or 1)
    data = gather(open_source(spec, known, samples, seed), known, samples, seed)
    if not data.source.checked:
        _check(data)
    return data


def synthetic(
    inputs: Mapping[str, tuple[Sequence[Any], str]],
    samples: int = 256,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Data:
    """Seeded random inputs; parameters as in `open_data`. `.warning` says what they cost."""
    return open_data(None, inputs, samples=samples, seed=seed, shapes=shapes)


def gather(source: Source, inputs: Inputs, samples: int, seed: int) -> Data:
    """At most `samples` of a source, chosen by `seed`, in random order (in ascending order where the source is sequential).

    Raises
    ------
    DataError
        There are fewer than one batch of a model with a fixed batch size.
    """
    chosen = (
        np.random.default_rng(seed)
        .choice(source.count, min(samples, source.count), replace=False)
        .tolist()
    )
    return _with_chosen(
        Data(source, inputs, (), seed), sorted(chosen) if source.sequential else chosen
    )


def _with_chosen(data: Data, chosen: Sequence[int]) -> Data:
    """The same data with other samples, as many as fill whole batches where the batch size is fixed."""
    batch = data.inputs.batch or 1
    whole = len(chosen) - len(chosen) % batch
    if whole == 0:
        raise DataError(
            "data-samples",
            f"{len(chosen)} samples from {data.source.describe()}; the model takes batches of {batch}: give more samples",
        )
    return replace(data, chosen=tuple(chosen[:whole]))


def split(data: Data, first: int, second: int) -> tuple[Data, Data]:
    """Two disjoint subsets of so many samples, drawn at random by the data's seed: statistics on one, decisions checked on the other.

    Raises
    ------
    DataError
        There are fewer samples than asked for, or the data are mirrored already (a sample and its mirror image must stay together).
    """
    if data.flipped:
        raise DataError(
            "data-split",
            "mirrored data cannot be split; split first, then mirror the part that needs it",
        )
    if first < 1 or second < 1 or first + second > len(data.chosen):
        raise DataError(
            "data-split",
            f"cannot take {first} and {second} different samples from {data.describe()}; give more samples",
        )
    order = np.random.default_rng([data.seed, first, second]).permutation(len(data.chosen)).tolist()
    parts = order[:first], order[first : first + second]
    if data.source.sequential:
        parts = sorted(parts[0]), sorted(parts[1])
    one, other = ([data.chosen[i] for i in part] for part in parts)
    return _with_chosen(data, one), _with_chosen(data, other)


def flips(data: Data) -> Data:
    """The data with a horizontally mirrored copy after each sample; all image inputs (rank 4; 1, 3 or 4 channels) are mirrored.

    Raises
    ------
    DataError
        The model has no image input.
    """
    if not any(data.inputs.image(n) for n in data.inputs.items):
        names = ", ".join(map(repr, data.inputs.items))
        raise DataError(
            "data-flip",
            f"nothing to mirror: none of the inputs {names} is an image of 1, 3 or 4 channels",
        )
    return replace(data, flipped=True)


def samples_of(feeds: Mapping[str, np.ndarray]) -> int:
    """Samples in a batch: the length of axis 0."""
    return next((len(a) for a in feeds.values() if a.ndim), 1)


def _mirror(sample: Mapping[str, np.ndarray], inputs: Inputs) -> dict[str, np.ndarray]:
    """A sample seen in a mirror; inputs that are no images stay."""
    mirrored = dict(sample)
    for name in sample:
        axes = inputs.image(name)
        if axes is not None:
            mirrored[name] = np.flip(
                sample[name], axes.width - 4
            )  # counted from the end: samples lack the batch axis
    return mirrored


def _check(data: Data) -> None:
    """Read the first samples, so that data that do not fit are refused before any work is done."""
    read = 0
    for _, sample in data._read():
        read += sum(a.nbytes for a in sample.values())
        if read > CHECKED_BYTES:
            return
