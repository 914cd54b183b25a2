"""Labeled arrays: one .npz file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.arrays import update_hash
from onnxprune.data.images import decode_bytes
from onnxprune.data.inputs import Inputs
from onnxprune.data.label_formats.base import BOXES, Format, find_image_input
from onnxprune.data.objects import load_arrays
from onnxprune.errors import DataError
from onnxprune.files import sha256
from onnxprune.named import Named

BLOBS = ("jpeg", "png")


class LabeledArrays:
    """An .npz file as `onnxprune.data.labeled` describes it, loaded into memory; or a dict."""

    def __init__(self, path: Path | Named, inputs: Inputs) -> None:
        self.path, self.inputs = path, inputs
        arrays = load_arrays(path)
        self.blob = next((b for b in BLOBS if b in arrays), None)
        # first, because an input may itself be called images
        if all(name in arrays for name in inputs.items):
            self.data = {name: arrays.pop(name) for name in inputs.items}
            self.pieces = {
                name: inputs.pieces(name, a.shape, a.dtype, str(path))
                for name, a in self.data.items()
            }
            self.count = inputs.common_count(self.pieces, str(path))
            self.data = {name: self.pieces[name].view(a) for name, a in self.data.items()}
        elif "images" in arrays or (self.blob and "offsets" in arrays):
            self.name, self.channels = find_image_input(inputs, str(path))
            keys = ("images",) if "images" in arrays else (str(self.blob), "offsets")
            self.data = {key: arrays.pop(key) for key in keys}
            # n samples have n + 1 offsets
            self.count = len(self.data[keys[-1]]) - (len(keys) - 1)
        else:
            raise DataError(
                "data-names",
                f"{path} has {', '.join(sorted(arrays))}; it must have images, jpeg or png with "
                f"offsets, or {', '.join(inputs.items)}",
            )
        self.boxes = arrays.pop(BOXES, None)
        # any other array with a row per sample is a label
        self.labels = {
            name: a
            for name, a in arrays.items()
            if a.ndim and len(a) == self.count and a.dtype.kind in "iufb"
        }
        self._check(arrays)

    def _check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Check the label arrays; `arrays` are those that are not inputs."""
        # arrays of other names may be anything; these are meant as labels
        for name in ("labels", "masks", "targets"):
            if name in arrays and name not in self.labels:
                raise DataError(
                    "data-labels",
                    f"{self.path}: {name} has shape {arrays[name].shape}, "
                    f"which does not match the {self.count} samples",
                )
        if self.boxes is not None and (
            self.boxes.ndim != 2 or self.boxes.shape[1] not in (6, 7, 8)
        ):
            raise DataError(
                "data-labels",
                f"{self.path}: boxes have shape {self.boxes.shape}; it must be (m, 6): sample, "
                "class, center x, center y, width, height",
            )
        if not self.labels and self.boxes is None:
            raise DataError(
                "data-labels",
                f"{self.path} has no labels: no array of {self.count} rows besides the inputs, "
                "and no boxes",
            )

    @cached_property
    def _boxes_of(self) -> list[np.ndarray]:
        assert self.boxes is not None
        return [self.boxes[self.boxes[:, 0] == i] for i in range(self.count)]

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Return one sample with all its labels."""
        where = f"{self.path} sample {index}"
        labels = {name: array[index] for name, array in self.labels.items()}
        if self.boxes is not None:
            labels[BOXES] = self._boxes_of[index]
        # data by input name may contain an input called images
        if "images" in self.data and "images" not in self.inputs.items:
            return where, {self.name: self.data["images"][index]}, labels
        if "offsets" in self.data and "offsets" not in self.inputs.items:
            start, end = (int(v) for v in self.data["offsets"][index : index + 2])
            encoded = self.data[str(self.blob)][start:end].tobytes()
            return where, {self.name: decode_bytes(encoded, self.channels, where)}, labels
        sample = {
            name: array[0 if self.pieces[name].count is None else index]
            for name, array in self.data.items()
        }
        return where, sample, labels

    def describe(self) -> str:
        """Return a phrase such as "samples from val.npz"."""
        return f"samples from {self.path}"

    def digest(self) -> str:
        """Return the hex sha256 of the file; computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        if not isinstance(self.path, Named):
            return sha256(self.path)
        state = hashlib.sha256()
        update_hash(state, load_arrays(self.path))
        return state.hexdigest()


NPZ = Format(lambda path: path.suffix.lower() == ".npz", LabeledArrays)
