"""Calibration data: checked samples of any source, in batches that fit the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from onnxprune.data.inputs import Batch, Inputs, read_inputs, samples_of
from onnxprune.data.joined import open_source
from onnxprune.data.objects import Samples, open_object
from onnxprune.data.preprocess import DEFAULT, Preprocess
from onnxprune.data.sources import Source
from onnxprune.errors import DataError, UsageError, plural
from onnxprune.ir.model import ModelView
from onnxprune.named import Named, describe
from onnxprune.summary import Summarized

# of samples that are checked when data are opened; later ones are checked when they are read
CHECKED_BYTES = 64 << 20

__all__ = [
    "Data",
    "Preprocess",
    "flips",
    "gather",
    "mirror",
    "open_data",
    "samples_of",
    "split",
    "synthetic",
]

Item = TypeVar("Item")
DataLike = str | Path | Sequence[str | Path] | Samples


@dataclass(frozen=True, eq=False, repr=False)
class Data(Summarized):
    """Selected samples of a source, in a fixed order.

    Every pass yields the same arrays. At most one batch is in memory.

    Attributes
    ----------
    source
        Where the samples come from.
    inputs
        The model's inputs.
    chosen
        Indices of the selected samples in the source, by which their labels can be found.
    seed
        Seed of the selection.
    flipped
        Whether each sample is followed by its mirror image.
    skipped
        Reason of each sample that was selected and cannot be decoded.
    """

    source: Source
    inputs: Inputs
    chosen: tuple[int, ...]
    seed: int = 0
    flipped: bool = False
    skipped: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Number of samples in one pass, mirrored ones included."""
        return len(self.chosen) * (2 if self.flipped else 1)

    @property
    def warning(self) -> str | None:
        """Warning for the user about these data, None if there is none."""
        return self.source.warning

    def _title(self) -> str:
        """Return how many samples there are, and of what."""
        return self.describe()

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield feeds by input name, in the model's types.

        Parameters
        ----------
        batch_size
            Samples per feed; fewer at the end and where the size of the samples changes. A model
            with a fixed batch size gets exactly that instead, and one whose inputs have no common
            batch axis gets one sample at a time.

        Raises
        ------
        DataError
            A sample cannot be read, does not fit the model, or contains NaN or infinity.
        UsageError
            `batch_size` is below 1.
        """
        if batch_size < 1:
            raise UsageError("batch-size", f"batch size must be at least 1, not {batch_size}")
        for rows in group_alike(self._read(), self.inputs.batch or batch_size, self._fits):
            yield self.inputs.stack([sample for _, sample in rows])

    def describe(self) -> str:
        """Return one line: how many samples, of how many, from where, selected by which seed."""
        of = "" if len(self.chosen) == self.source.count else f" of {self.source.count}"
        mirrored = ", each also mirrored" if self.flipped else ""
        skipped = f", {len(self.skipped)} unreadable skipped" if self.skipped else ""
        source = self.source.describe()
        return f"{len(self.chosen)}{of} {source}{mirrored}{skipped}, seed {self.seed}"

    def fingerprint(self) -> str:
        """Return a hex sha256 of what the batches depend on; computed once.

        It covers stored content, selection and order, preprocessing, and the model's inputs.
        """
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

    def digests(self) -> list[str]:
        """Return a hex sha256 of the stored content of each selected sample; computed once."""
        return self._digests

    @cached_property
    def _digests(self) -> list[str]:
        # sources whose samples are expensive to reach hash them in one pass
        together = getattr(self.source, "digests", None)
        if together is not None:
            return list(together(self.chosen))
        return [self.source.digest([index]) for index in self.chosen]

    def _read(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield (origin, checked sample), followed by its mirror image if flipped."""
        for where, raw in self.source.read(self.chosen):
            sample = self.inputs.sample(raw, where)
            yield where, sample
            if self.flipped:
                yield where, mirror(sample, self.inputs)

    def _fits(
        self, first: tuple[str, dict[str, np.ndarray]], other: tuple[str, dict[str, np.ndarray]]
    ) -> bool:
        """Return whether two samples can be stacked; a fixed batch size requires it."""
        if self.inputs.stackable(first[1], other[1]):
            return True
        if self.inputs.batch is not None:
            raise DataError(
                "data-shape",
                f"{other[0]} has another size than earlier samples; the model takes batches of "
                f"{self.inputs.batch}: make all samples the same size",
            )
        return False


def group_alike(
    items: Iterable[Item], size: int, alike: Callable[[Item, Item], bool]
) -> Iterator[list[Item]]:
    """Yield runs of at most `size` consecutive items that are alike to the first of their run."""
    group: list[Item] = []
    for item in items:
        # the first stands for its run, because being alike is transitive
        if group and not alike(group[0], item):
            yield group
            group = []
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def open_data(
    spec: DataLike | None,
    inputs: Mapping[str, tuple[Sequence[Any], str]],
    *,
    samples: int = 256,
    seed: int = 0,
    preprocess: Preprocess = DEFAULT,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_axes: Mapping[str, int | str] | None = None,
    model: ModelView | None = None,
) -> Data:
    """Open calibration data for a model.

    Parameters
    ----------
    spec
        A folder of images; .npz or .npy, or a folder of them; FILE.py:FUNCTION; None or "synthetic"
        for random inputs; NAME:LOCATION with a name of `onnxprune.data.DATA_SOURCES`; a pattern of
        names with "*"; or a list of these. Or the data themselves, see
        `onnxprune.data.objects.open_object`.
    inputs
        name -> (shape, onnxruntime's type string), as in `Session.inputs`.
    samples
        Maximum number of samples, selected at random (from a loader: the first). For a model with a
        fixed batch size b, a multiple of b and at least b.
    seed
        Seed of the selection.
    preprocess
        For images and for uint8 arrays of images that feed a float input. Float arrays are not
        changed.
    shapes
        name -> full shape for inputs with dynamic sizes. A batch size given here is fixed.
    batch_axes
        name -> axis that counts samples, or "none" ("*" for all inputs); the others are derived.
    model
        Runs for a moment where it is in doubt which axis is the batch's.

    Raises
    ------
    DataError
        The data do not exist or do not fit the model. The first 64 MB of samples are checked here,
        the others when they are read.
    UsageError
        An option is invalid.
    MissingExtraError
        The data are images and Pillow is not installed.
    """
    if samples < 1:
        raise UsageError("samples", f"samples must be at least 1, not {samples}")
    known = read_inputs(inputs, preprocess, shapes, batch_axes, model)
    # a fixed batch must be filled
    samples = max(samples, known.batch or 1)
    data = gather(_open(spec, known, samples, seed), known, samples, seed)
    data = _skip_unreadable(data)
    if not data.source.checked:
        _check(data)
    return data


def _open(spec: DataLike | None, inputs: Inputs, samples: int, seed: int) -> Source:
    """Open the source that texts name, or that an object is."""
    if isinstance(spec, Named):
        return open_object(spec, inputs, samples)
    if spec is None or isinstance(spec, (str, Path)):
        return open_source(spec, inputs, samples, seed)
    if isinstance(spec, (list, tuple)) and all(isinstance(e, (str, Path)) for e in spec):
        return open_source(spec, inputs, samples, seed)
    return open_object(Named(describe(spec), spec), inputs, samples)


def synthetic(
    inputs: Mapping[str, tuple[Sequence[Any], str]],
    samples: int = 256,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Data:
    """Return seeded random inputs; parameters as in `open_data`. `.warning` states their limits."""
    return open_data(None, inputs, samples=samples, seed=seed, shapes=shapes)


def gather(source: Source, inputs: Inputs, samples: int, seed: int) -> Data:
    """Select at most `samples` of a source by a seed.

    They are in random order, or in ascending order if the source is sequential.

    Raises
    ------
    DataError
        There are fewer samples than the model's fixed batch size.
    """
    generator = np.random.default_rng(seed)
    # plain integers, because hashes are of JSON
    chosen = generator.choice(source.count, min(samples, source.count), replace=False).tolist()
    return _select(Data(source, inputs, (), seed), sorted(chosen) if source.sequential else chosen)


def _select(data: Data, chosen: Sequence[int]) -> Data:
    """Return the data with other samples, as many as fill complete batches of a fixed size."""
    # an incomplete batch could not run, so its samples are dropped
    batch = data.inputs.batch or 1
    count = len(chosen) - len(chosen) % batch
    if count == 0:
        raise DataError(
            "data-samples",
            f"{len(chosen)} samples from {data.source.describe()}; "
            f"the model takes batches of {batch}: provide more samples",
        )
    return replace(data, chosen=tuple(chosen[:count]))


def split(data: Data, first: int, second: int) -> tuple[Data, Data]:
    """Draw two disjoint subsets by the data's seed, for example for statistics and for checks.

    Parameters
    ----------
    first, second
        Numbers of samples.

    Raises
    ------
    DataError
        There are fewer samples, or the data are already mirrored (a sample and its mirror image
        must stay together).
    """
    if data.flipped:
        raise DataError(
            "data-split",
            "mirrored data cannot be split; split first, then mirror the part that needs it",
        )
    if first < 1 or second < 1 or first + second > len(data.chosen):
        raise DataError(
            "data-split",
            f"cannot take {first} and {second} different samples from {data.describe()}; "
            "provide more samples",
        )
    # sizes are part of the seed, so that splits of other sizes are other draws
    generator = np.random.default_rng([data.seed, first, second])
    order = generator.permutation(len(data.chosen)).tolist()
    one, other = order[:first], order[first : first + second]
    # a stream would restart for each step back
    if data.source.sequential:
        one, other = sorted(one), sorted(other)
    return (
        _select(data, [data.chosen[i] for i in one]),
        _select(data, [data.chosen[i] for i in other]),
    )


def without_copies(data: Data, other: Data) -> Data | None:
    """Return the data without samples that are equal to one of `other`.

    None if none, or no complete batch of a fixed size, remain.
    """
    known = set(other.digests())
    pairs = zip(data.chosen, data.digests(), strict=True)
    chosen = [index for index, digest in pairs if digest not in known]
    if len(chosen) == len(data.chosen):
        return data
    return _select(data, chosen) if len(chosen) >= (data.inputs.batch or 1) else None


def flips(data: Data) -> Data:
    """Return the data with a horizontally mirrored copy after each sample.

    All image inputs (rank 4; 1, 3 or 4 channels) are mirrored.

    Raises
    ------
    DataError
        The model has no image input.
    """
    if not any(data.inputs.image(n) for n in data.inputs.items):
        names = ", ".join(map(repr, data.inputs.items))
        raise DataError(
            "data-flip",
            f"cannot mirror: none of the inputs {names} is an image of 1, 3 or 4 channels",
        )
    return replace(data, flipped=True)


def mirror(sample: Mapping[str, np.ndarray], inputs: Inputs) -> dict[str, np.ndarray]:
    """Return the mirror images of a sample or a batch; inputs that are not images are unchanged."""
    mirrored = dict(sample)
    for name in sample:
        axes = inputs.image(name)
        if axes is not None:
            # counted from the end, because samples lack the batch axis
            mirrored[name] = np.flip(sample[name], axes.width - 4)
    return mirrored


def _skip_unreadable(data: Data) -> Data:
    """Return the data without samples that cannot be decoded, of sources that find these."""
    kept, reasons = find_readable(data.source, data.chosen)
    return replace(_select(data, kept), skipped=reasons) if reasons else data


def find_readable(source: Any, chosen: Sequence[int]) -> tuple[list[int], tuple[str, ...]]:
    """Return the samples that can be decoded, and why the others cannot.

    Parameters
    ----------
    source
        A source of any kind; all samples of one without `find_unreadable` count as readable.

    Raises
    ------
    DataError
        None can be decoded.
    """
    find = getattr(source, "find_unreadable", None)
    reasons: Mapping[int, str] = find(chosen) if find else {}
    kept = [index for index in chosen if index not in reasons]
    if reasons and not kept:
        count = plural(len(reasons), "selected image")
        raise DataError("data-image", f"cannot read any of {count}: {next(iter(reasons.values()))}")
    return kept, tuple(reasons.values())


def _check(data: Data) -> None:
    """Read the first samples, so that unsuitable data are rejected before any work is done."""
    size = 0
    for _, sample in data._read():
        size += sum(a.nbytes for a in sample.values())
        if size > CHECKED_BYTES:
            return
