"""Inputs, sources and refusals that the tests of calibration data share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxprune.data.dataset import Data
from onnxprune.errors import DataError, OnnxpruneError

IMAGE = {"x": (["N", 3, 8, 8], "tensor(float)")}
TOKENS = {"ids": (["batch", "seq"], "tensor(int64)"), "mask": (["batch", "seq"], "tensor(int64)")}


def numbered(count: int, shape: tuple[int, ...] = (3, 8, 8)) -> np.ndarray:
    """Sample i holds the number i everywhere."""
    return np.arange(count, dtype=np.float32).reshape(-1, *[1] * len(shape)) * np.ones(
        shape, np.float32
    )


def values(data: Data, name: str = "x", batch_size: int = 4) -> np.ndarray:
    """All samples of one input."""
    return np.concatenate([b[name] for b in data.batches(batch_size)])


def first_numbers(data: Data) -> list[int]:
    """The numbers that `numbered` wrote, in the order of the samples."""
    x = values(data)
    return x.reshape(len(x), -1)[:, 0].astype(int).tolist()


def save_npz(
    folder: Path, compressed: bool = False, name: str = "calib.npz", **arrays: np.ndarray
) -> Path:
    path = folder / name
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@contextlib.contextmanager
def rejects(code: str, *words: str, kind: type[OnnxpruneError] = DataError) -> Iterator[None]:
    """The error is ours, has that code, and is one sentence with these words."""
    with pytest.raises(kind) as info:
        yield
    assert info.value.code == code, str(info.value)
    assert "\n" not in str(info.value)
    for word in words:
        assert word in str(info.value)
