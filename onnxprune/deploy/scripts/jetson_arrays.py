"""Inputs of a bundle for a device, and its outputs compared with the expected ones.

Standard library only: .npz archives are read by hand.
"""

from __future__ import annotations

import ast
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# largest |output - expected| / max |expected|: rounding of the type through a deep network; TF32 is
# off at fp32, and int8 loses most in the first and the last layer
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.25}
_CODES = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "u1": "B", "i4": "i", "i8": "q", "b1": "?"}


class Array(NamedTuple):
    """A little-endian array in C order."""

    kind: str
    shape: tuple[int, ...]
    data: bytes

    def first(self, shape: Sequence[int]) -> Array:
        """Return the first batch of that shape."""
        count = 1
        for length in shape:
            count *= length
        return Array(self.kind, tuple(shape), self.data[: count * int(self.kind[1:])])

    def values(self) -> list[float]:
        """Return the elements as numbers."""
        count = len(self.data) // int(self.kind[1:])
        return [float(v) for v in struct.unpack(f"<{count}{_CODES[self.kind]}", self.data)]


def read_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz file, {} without the file."""
    arrays: dict[str, Array] = {}
    if not path.is_file():
        return arrays
    with zipfile.ZipFile(str(path)) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            # the length of the header has two bytes in version 1 of the format, four afterwards
            form, start = ("<H", 10) if content[6] == 1 else ("<I", 12)
            (length,) = struct.unpack(form, content[8:start])
            header = ast.literal_eval(content[start : start + length].decode("latin1"))
            kind = header["descr"].lstrip("<|=")
            body = content[start + length :]
            arrays[name[: -len(".npy")]] = Array(kind, tuple(header["shape"]), body)
    return arrays


def compare(outputs: dict[str, list[float]], expected: dict[str, Array]) -> dict[str, float]:
    """Return output -> largest |output - expected| / max |expected|; NaN for a wrong length.

    Parameters
    ----------
    outputs
        Name -> values, in the order of the model's outputs.
    expected
        output_0, output_1, ... -> values of at least as many elements, the batch first.
    """
    differences = {}
    for index, (name, values) in enumerate(outputs.items()):
        array = expected.get(f"output_{index}")
        right = array.values()[: len(values)] if array else []
        if not values or len(right) != len(values):
            differences[name] = float("nan")
            continue
        peak = max(abs(v) for v in right) or 1.0
        # max() keeps or loses NaN by the order of its arguments
        apart = [abs(a - b) / peak for a, b in zip(values, right)]  # noqa: B905 - Python 3.8
        differences[name] = max(apart) if all(a == a for a in apart) else float("nan")
    return differences


def judge(differences: dict[str, float], precision: str) -> dict[str, Any]:
    """Return the differences with their limit, and what exceeds it."""
    limit = TOLERANCES[precision]
    # not <=, so that NaN counts as wrong
    wrong = [name for name, value in differences.items() if not value <= limit]
    # JSON has no NaN
    plain = {name: value if value == value else None for name, value in differences.items()}
    return {"tolerance": limit, "differences": plain, "wrong": wrong}
