"""Data sets of the Hugging Face library on disk: Arrow or Parquet files with their features."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.images import decode_bytes, find_defect
from onnxprune.data.inputs import Inputs
from onnxprune.data.label_formats.base import (
    BOXES,
    Format,
    LabeledSource,
    box_rows,
    find_image_input,
)
from onnxprune.data.label_formats.masks import read_mask
from onnxprune.errors import DataError, MissingExtraError
from onnxprune.files import sha256

_SPLITS = ("validation", "val", "test", "train")
_SUFFIXES = (".arrow", ".parquet")
_BOX_COLUMNS = ("objects", "annotations")
_CATEGORIES = ("category", "category_id", "label", "labels", "categories")


def _find_files(path: Path) -> tuple[str, list[Path]]:
    """Return name and files of the split for validation; "" for a folder without splits."""
    if not path.is_dir():
        return "", []
    for split in _SPLITS:
        folder = path / split
        own = _list_files(folder) if folder.is_dir() else []
        for place in (path, path / "data"):
            own = own or sorted(f for s in _SUFFIXES for f in place.glob(f"{split}-*{s}"))
        if own:
            return split, own
    return "", _list_files(path)


def _list_files(folder: Path) -> list[Path]:
    return sorted(f for suffix in _SUFFIXES for f in folder.glob(f"*{suffix}"))


def _detect(path: Path) -> bool:
    return bool(_find_files(path)[1])


class Table(LabeledSource):
    """Rows of Arrow or Parquet files with a column of images and one of labels."""

    def __init__(self, path: Path, inputs: Inputs) -> None:
        self.path, self.inputs = path, inputs
        self.split, self.files = _find_files(path)
        self.name, self.channels = find_image_input(inputs, str(path))
        self.table = _read_tables(self.files)
        self.count = self.table.num_rows
        features = _read_features(self.table.schema)
        images = [n for n, f in features.items() if _kind(f) == "Image"]
        if not images or not self.count:
            raise DataError("data-empty", f"{path} has no column of images")
        self.image = "image" if "image" in images else images[0]
        self.column, self.kind = _find_labels(features, images, self.image, path)

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Return an image's pixels and its labels."""
        where = f"{self.path} row {index}"
        row = self.table.slice(index, 1).to_pylist()[0]
        pixels = decode_bytes(_image_bytes(row[self.image], where), self.channels, where)
        size = (int(pixels.shape[0]), int(pixels.shape[1]))
        value = row[self.column]
        try:
            if self.kind == "labels":
                return where, {self.name: pixels}, {"labels": np.array(int(value))}
            if self.kind == "masks":
                mask = read_mask(io.BytesIO(_image_bytes(value, where)), where)
                return where, {self.name: pixels}, {"masks": mask}
            return where, {self.name: pixels}, {BOXES: _read_boxes(value, size)}
        except (KeyError, TypeError, ValueError) as problem:
            raise DataError(
                "labels-corrupt", f"labels of {where} are damaged: {problem}"
            ) from problem

    def find_unreadable(self, indices: Sequence[int]) -> dict[int, str]:
        """Return index -> reason of the rows whose image no decoder can read to the end."""
        column = self.table.column(self.image)
        reasons = {}
        for index in indices:
            value = column[index].as_py()
            data = value.get("bytes") if isinstance(value, Mapping) else value
            # a row without bytes is an error of the data set, which `read` names
            reason = find_defect(io.BytesIO(data)) if isinstance(data, bytes) else ""
            if reason:
                reasons[index] = f"{self.path} row {index}: {reason}"
        return reasons

    def describe(self) -> str:
        """Return a phrase such as "images with labels (Hugging Face, split test) in data"."""
        part = f", split {self.split}" if self.split else ""
        return (
            f"images with {self.kind} of column {self.column} (Hugging Face{part}) in {self.path}"
        )

    def digest(self) -> str:
        """Return the hex sha256 of the files; computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        lines = [f"{self.column}\n", *(f"{sha256(f)}\n" for f in self.files)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_tables(files: list[Path]) -> Any:
    """Return the rows of all files as one Arrow table; Arrow files are mapped, not loaded."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "datasets", "reading Hugging Face data sets") from None
    tables = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                tables.append(pyarrow.parquet.read_table(file))
            else:
                with pyarrow.memory_map(str(file)) as source:
                    tables.append(pyarrow.ipc.open_stream(source).read_all())
        # Arrow's errors derive from several built-in ones
        except Exception as problem:
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            raise DataError("labels-corrupt", f"labels {file} are damaged: {reason}") from problem
    try:
        return pyarrow.concat_tables(tables)
    except pyarrow.ArrowInvalid as problem:
        raise DataError(
            "labels-corrupt", f"labels {files[0]} and others have different columns"
        ) from problem


def _read_features(schema: Any) -> Mapping[str, Any]:
    """Return column -> its feature, as the library writes it into the schema; else by its type."""
    text = (schema.metadata or {}).get(b"huggingface")
    features: dict[str, Any] = {}
    if text:
        try:
            features = json.loads(text)["info"]["features"]
        except (ValueError, KeyError, TypeError):
            features = {}
    for field in schema:
        # files of other writers: an image is a struct of its bytes and its path
        names = {f.name for f in field.type} if str(field.type).startswith("struct") else set()
        if field.name not in features and {"bytes", "path"} <= names:
            features[field.name] = {"_type": "Image"}
        features.setdefault(field.name, {"_type": "Value", "dtype": str(field.type)})
    return features


def _kind(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, Mapping) else ""


def _find_labels(
    features: Mapping[str, Any], images: list[str], image: str, path: Path
) -> tuple[str, str]:
    """Return the column of the labels, and what they are: boxes, masks or labels."""
    for name in _BOX_COLUMNS:
        if name in features:
            return name, BOXES
    others = [n for n in images if n != image]
    if others:
        return others[0], "masks"
    classes = [n for n, f in features.items() if _kind(f) == "ClassLabel"]
    classes += [n for n in ("label", "labels", "fine_label", "class") if n in features]
    if not classes:
        raise DataError(
            "data-labels",
            f"{path} has columns {', '.join(features)}, none of which is a class, boxes "
            "(objects) or a second image",
        )
    return classes[0], "labels"


def _image_bytes(value: Any, where: str) -> bytes:
    """Return the encoded bytes of an image; files that a row names are not read."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise DataError(
            "labels-images",
            f"{where} has the path of an image, not its bytes; embed images when saving the data",
        )
    return data


def _read_boxes(value: Any, size: tuple[int, int]) -> np.ndarray:
    """Return label rows of the boxes of one row: lists by name, or a list of objects."""
    if isinstance(value, list):
        value = {name: [row[name] for row in value] for name in (value[0] if value else ())}
    corners = np.asarray(value.get("bbox", ()), np.float64).reshape(-1, 4)
    column = next((n for n in _CATEGORIES if n in value), None)
    if len(corners) and column is None:
        raise ValueError("boxes without a category")
    kinds = value[column] if column else []
    # as in COCO: the corner and the sides, in pixels
    ends = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    return box_rows(kinds, ends / np.array([size[1], size[0]] * 2, np.float64))


HUGGINGFACE = Format(_detect, Table)
