"""A function of the user as calibration data."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.inputs import Inputs, check_names
from onnxprune.data.pieces import Pieces
from onnxprune.errors import DataError


class Loader:
    """The first samples that a function yields.

    The function is called again for every pass and must yield the same each time: the first pass
    counts, checks and hashes the samples, and later ones are compared with it.
    """

    sequential = True
    checked = True
    warning = None

    def __init__(
        self,
        spec: str,
        function: Callable[[], Any],
        inputs: Inputs,
        samples: int,
        convert: Callable[[Any, Inputs, str], Any] = lambda feed, inputs, where: feed,
    ) -> None:
        self.spec, self.function, self.inputs, self.convert = spec, function, inputs, convert
        self.hashes = []
        for where, raw in self._iterate_samples():
            self.hashes.append(_compute_hash(inputs.sample(raw, where)))
            # functions may yield without end
            if len(self.hashes) == samples:
                break
        self.count = len(self.hashes)
        if not self.hashes:
            raise DataError(
                "data-empty", f"{spec} yields nothing; it must yield dicts of arrays by input name"
            )

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield samples, with one pass over the function per ascending run of indices."""
        position, stream = -1, self._iterate_samples()
        for index in indices:
            # a generator cannot go back
            if index <= position:
                position, stream = -1, self._iterate_samples()
            while position < index:
                position += 1
                item = next(stream, None)
                if item is None:
                    raise DataError(
                        "data-loader",
                        f"{self.spec} yielded {position} samples, {self.count} before; "
                        "it must yield the same each time",
                    )
                where, raw = item
            sample = self.inputs.sample(raw, where)
            # statistics of several passes must refer to the same samples
            if _compute_hash(sample) != self.hashes[index]:
                raise DataError(
                    "data-loader",
                    f"{where} differs from the previous pass; seed its random numbers, "
                    "so that runs can be repeated",
                )
            yield where, sample

    def describe(self) -> str:
        """Return a phrase such as "samples from loader.py:feeds"."""
        return f"samples from {self.spec}"

    def digest(self, indices: Sequence[int]) -> str:
        """Return the hex sha256 of the converted samples."""
        return hashlib.sha256(b"".join(self.hashes[i] for i in indices)).hexdigest()

    def _iterate_samples(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield single samples of the batches or samples that the function yields."""
        try:
            stream = iter(self.function())
        except (Exception, SystemExit) as problem:
            raise DataError("data-loader", f"{self.spec} fails: {_summarize(problem)}") from problem
        number = 0
        while True:
            try:
                # only the function's own errors are caught, not those of the consumer
                feed = next(stream)
            except StopIteration:
                return
            # scripts may call sys.exit
            except (Exception, SystemExit) as problem:
                raise DataError(
                    "data-loader", f"{self.spec} fails at item {number}: {_summarize(problem)}"
                ) from problem
            where = f"{self.spec} item {number}"
            yield from self._unbatch(self.convert(feed, self.inputs, where), where)
            number += 1

    def _unbatch(self, feed: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if not isinstance(feed, Mapping):
            kind, names = type(feed).__name__, ", ".join(self.inputs.items)
            raise DataError(
                "data-loader",
                f"{where} is {kind}; it must be a dict of arrays by input name: {names}",
            )
        check_names(feed, self.inputs.items, where)
        arrays: dict[str, np.ndarray] = {}
        pieces: dict[str, Pieces] = {}
        for name in feed:
            try:
                array = np.asarray(feed[name])
            except Exception as problem:  # the object's own conversion may raise anything
                raise DataError(
                    "data-loader", f"{where}: {name!r} is not an array: {_summarize(problem)}"
                ) from problem
            pieces[name] = self.inputs.pieces(name, array.shape, array.dtype, where)
            arrays[name] = pieces[name].view(array)
        for index in range(self.inputs.common_count(pieces, where)):
            yield (
                where,
                {n: a[0 if pieces[n].count is None else index] for n, a in arrays.items()},
            )


def open_loader(location: str, inputs: Inputs, samples: int, seed: int) -> Loader:
    """Open a loader function.

    Parameters
    ----------
    location
        `FILE.py:FUNCTION`; the function is called without arguments.
    samples
        Number of samples to take, the first ones.
    seed
        Not used.

    Raises
    ------
    DataError
        The file or function does not exist or fails, or does not yield feeds that fit the model.
    """
    # from the right: paths on Windows contain a colon
    file, _, name = location.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise DataError(
            "data-missing", f"no loader at {file or location}: pass it as FILE.py:FUNCTION"
        )
    function = getattr(_import_file(path), name, None)
    if not callable(function):
        raise DataError("data-loader", f"{file} has no function {name!r}")
    return Loader(location, function, inputs, samples)


def _import_file(path: Path) -> Any:
    """Import a file as a module; it can import from its own folder, as when Python runs it."""
    spec = importlib.util.spec_from_file_location(f"onnxprune_loader_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DataError("data-loader", f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as problem:
        raise DataError("data-loader", f"{path} fails to load: {_summarize(problem)}") from problem
    finally:
        # later imports must not find modules of that folder
        sys.path.remove(folder)
    return module


def _compute_hash(sample: Mapping[str, np.ndarray]) -> bytes:
    state = hashlib.sha256()
    for array in sample.values():
        # equal bytes in another shape are another sample
        state.update(f"{array.dtype}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.digest()


def _summarize(problem: BaseException) -> str:
    """Return the type of an exception and the first line of its message."""
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__
