"""Objects of the caller as data: an array, arrays by input name, or an iterable of feeds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.arrays import ALIASES, LABELS, update_hash
from onnxprune.data.inputs import Inputs, check_names
from onnxprune.data.loader import Loader
from onnxprune.data.npy import check_archive, read_error
from onnxprune.errors import DataError
from onnxprune.files import open_regular
from onnxprune.named import Named, describe

# arrays by input name, an array, an iterable of feeds, or a function that returns one; an array
# has no type of its own here, because those of frameworks have no common base
Samples = Mapping[str, Any] | Iterable[Any] | Callable[[], Iterable[Any]]


class ArrayObjects:
    """Samples in arrays by input name, which are not copied."""

    sequential = False
    checked = False
    warning = None

    def __init__(self, name: str, arrays: Mapping[str, Any], inputs: Inputs) -> None:
        self.name = name
        converted = {key: to_array(value, key, name) for key, value in arrays.items()}
        check_names(converted, inputs.items, name)
        pieces = {
            key: inputs.pieces(key, array.shape, array.dtype, name)
            for key, array in converted.items()
        }
        self.count = inputs.common_count(pieces, name)
        # an input without samples is the same for all of them
        self.shared = {key for key, piece in pieces.items() if piece.count is None}
        self.arrays = {key: pieces[key].view(converted[key]) for key in inputs.items}
        if self.count == 0:
            raise DataError("data-empty", f"{name} has no samples")

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield views of the arrays."""
        for index in indices:
            yield (
                f"{self.name} sample {index}",
                {n: a[0 if n in self.shared else index] for n, a in self.arrays.items()},
            )

    def describe(self) -> str:
        """Return what the arrays are."""
        return self.name

    def digest(self, indices: Sequence[int]) -> str:
        """Return the hex sha256 of the samples, as of the same arrays in a file."""
        state = hashlib.sha256()
        for _, sample in self.read(indices):
            update_hash(state, sample)
        return state.hexdigest()


class LabeledSamples:
    """Labeled samples in memory, from an iterable of (inputs, labels)."""

    def __init__(self, name: str, pairs: Iterable[Any], inputs: Inputs) -> None:
        self.name = name
        self.rows: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
        for number, item in enumerate(pairs):
            self.rows += _split_pairs(item, inputs, f"{name} item {number}")
        self.count = len(self.rows)
        if not self.rows:
            raise DataError("data-empty", f"{name} yields nothing")

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Return one sample."""
        return f"{self.name} sample {index}", *self.rows[index]

    def describe(self) -> str:
        """Return what was passed."""
        return f"samples of {self.name.strip('<>')}"

    def digest(self) -> str:
        """Return the hex sha256 of all samples; computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        state = hashlib.sha256()
        for row in self.rows:
            for arrays in row:
                update_hash(state, arrays)
        return state.hexdigest()


def open_object(data: Named, inputs: Inputs, samples: int) -> ArrayObjects | Loader:
    """Open calibration data that are an object.

    Parameters
    ----------
    data
        An array for the only input; arrays by input name; a function without arguments that yields
        feeds, called again for every pass; or an iterable of feeds (list, generator, torch
        DataLoader). A feed is a dict by input name, an array for the only input, or a tuple whose
        first entries are the inputs in their order (labels may follow). Each is a sample or a
        batch.
    samples
        Iterables are read once, up to this number of samples, and kept in memory.

    Raises
    ------
    DataError
        The object is none of these, or its arrays do not fit the model.
    """
    value, name = data.value, str(data)
    if isinstance(value, Mapping):
        return ArrayObjects(name, _pick_inputs(value, inputs), inputs)
    if _is_array(value):
        return ArrayObjects(name, {_find_only_input(inputs, name): value}, inputs)
    if callable(value) and not hasattr(value, "__iter__"):
        return Loader(name, value, inputs, samples, convert=_to_feed)
    # shuffled data differ in every pass, and a generator has only one
    feeds = list(_take(_iterate(value, name), inputs, samples, name))
    return Loader(name, lambda: feeds, inputs, samples)


def to_array(value: Any, name: str, where: str) -> np.ndarray:
    """Return a value as an array; tensors of frameworks are moved to the CPU.

    Raises
    ------
    DataError
        It is not an array of numbers.
    """
    # of torch, whose conversion refuses tensors with a gradient or on a GPU
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except Exception as problem:  # the object's own conversion may raise anything
        reason = str(problem).partition("\n")[0]
        raise DataError("data-kind", f"{where}: {name!r} is not an array: {reason}") from problem
    if array.dtype.kind not in "biufV":
        raise DataError(
            "data-kind", f"{where}: {name!r} is {describe(value)}, not an array of numbers"
        )
    return array


def _iterate(value: Any, name: str) -> Iterator[Any]:
    """Yield the items of an iterable; errors of its code become ours."""
    try:
        stream = iter(value)
        yield from stream
    except DataError:
        raise
    except Exception as problem:  # the code of the caller's data set may raise anything
        reason = str(problem).partition("\n")[0]
        raise DataError(
            "data-loader", f"{name} fails: {type(problem).__name__}: {reason}"
        ) from problem


def _take(
    items: Iterator[Any], inputs: Inputs, samples: int, name: str
) -> Iterator[dict[str, np.ndarray]]:
    """Yield feeds until they have enough samples."""
    count = 0
    for number, item in enumerate(items):
        where = f"{name} item {number}"
        feed = _to_feed(item, inputs, where)
        yield feed
        pieces = {n: inputs.pieces(n, a.shape, a.dtype, where) for n, a in feed.items()}
        count += inputs.common_count(pieces, where)
        if count >= samples:
            return


def _to_feed(item: Any, inputs: Inputs, where: str) -> dict[str, np.ndarray]:
    """Return the arrays of one feed by input name, without labels."""
    if isinstance(item, Mapping):
        named = _pick_inputs(item, inputs)
    elif _is_array(item):
        named = {_find_only_input(inputs, where): item}
    elif isinstance(item, (tuple, list)) and len(item) >= len(inputs.items):
        # data sets yield (inputs..., label)
        named = dict(zip(inputs.items, islice(item, len(inputs.items)), strict=True))
    else:
        raise DataError(
            "data-kind",
            f"{where} is {describe(item)}; it must be a dict of arrays by input name "
            f"({', '.join(inputs.items)}), an array, or a tuple that begins with them",
        )
    check_names(named, inputs.items, where)
    return {name: to_array(value, name, where) for name, value in named.items()}


def _split_pairs(
    item: Any, inputs: Inputs, where: str
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Yield inputs and labels of each sample of a pair (inputs, labels)."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataError(
            "data-labels", f"{where} is {describe(item)}; it must be a pair (inputs, labels)"
        )
    feed = _to_feed(item[0], inputs, where)
    named = item[1] if isinstance(item[1], Mapping) else {"labels": item[1]}
    labels = {name: to_array(value, name, where) for name, value in named.items()}
    pieces = {n: inputs.pieces(n, a.shape, a.dtype, where) for n, a in feed.items()}
    views = {name: pieces[name].view(array) for name, array in feed.items()}
    count = inputs.common_count(pieces, where)
    for name, array in labels.items():
        # the label of a single sample has no axis of samples
        if count > 1 and (not array.ndim or len(array) != count):
            raise DataError(
                "data-labels",
                f"{where}: {name} has shape {array.shape}, which does not match {count} samples",
            )
    for index in range(count):
        yield (
            {n: a[0 if pieces[n].count is None else index] for n, a in views.items()},
            {n: a[index] if a.ndim and len(a) == count else a for n, a in labels.items()},
        )


def open_labeled_object(data: Named, inputs: Inputs) -> LabeledSamples:
    """Open labeled data that are an iterable of pairs (inputs, labels), read once.

    A pair is a sample or a batch; labels are an array or arrays by name.
    """
    value = data.value() if callable(data.value) else data.value
    # a single pair of arrays is one batch
    if isinstance(value, tuple) and len(value) == 2 and all(map(_is_array, value)):
        value = [value]
    return LabeledSamples(str(data), _iterate(value, str(data)), inputs)


def load_arrays(path: Path | Named) -> dict[str, np.ndarray]:
    """Load all arrays of an .npz file, or convert those of a dict."""
    if isinstance(path, Named):
        return {name: to_array(value, name, path) for name, value in path.value.items()}
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as file:
            check_archive(path, file.zip)
            return {name: file[name] for name in file.files}
    except Exception as problem:  # zipfile, its decoders and numpy raise many types
        raise read_error(path, problem) from problem


def _is_array(value: Any) -> bool:
    """Return whether a value is an array or a tensor of a framework."""
    return hasattr(value, "__array__") and hasattr(value, "shape")


def _pick_inputs(arrays: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """Return the arrays without labels; a generic name stands for the only input."""
    given = {n: a for n, a in arrays.items() if n in inputs.items or n not in LABELS}
    if len(inputs.items) == len(given) == 1 and next(iter(given)) in ALIASES:
        given = dict(zip(inputs.items, given.values(), strict=True))
    return given


def _find_only_input(inputs: Inputs, where: str) -> str:
    """Return the name of the only input; DataError if there are several."""
    if len(inputs.items) > 1:
        raise DataError(
            "data-names",
            f"{where} is one array, but the model has the inputs "
            f"{', '.join(map(repr, inputs.items))}; pass a dict by input name",
        )
    return next(iter(inputs.items))
