"""Boxes of YOLO's format: one text file per image, and data.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.inputs import Inputs
from onnxprune.data.label_formats.base import (
    BOXES,
    Format,
    LabeledImages,
    LabeledSource,
    Size,
    box_rows,
)
from onnxprune.data.label_formats.reading import (
    inside,
    parse_labels,
    read_label_text,
    read_yaml,
)
from onnxprune.data.sources import IMAGE_SUFFIXES, find_files
from onnxprune.errors import DataError, plural

_SPLITS = ("val", "valid", "validation", "test", "train")
_YAML = (".yaml", ".yml")


def _find_yaml(path: Path) -> Path | None:
    """Return the YAML file of a data set: the file itself, data.yaml, or the only one."""
    if not path.is_dir():
        return path if path.suffix.lower() in _YAML else None
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in _YAML)
    named = [f for f in files if f.name in ("data.yaml", "data.yml")]
    chosen = named or files
    return chosen[0] if len(chosen) == 1 else None


def _detect(path: Path) -> bool:
    return _find_yaml(path) is not None or _has_labels(path)


def _has_labels(path: Path) -> bool:
    """Return whether a folder has images/ and text files in labels/."""
    labels = path / "labels"
    return (path / "images").is_dir() and bool(find_files(labels, (".txt",), below=True))


def _open(path: Path, inputs: Inputs) -> LabeledSource:
    file = _find_yaml(path)
    root = path if path.is_dir() else path.parent
    origins = []
    split = ""
    if file is not None:
        split, images = _read_split(file, root)
        origins.append(file)
    else:
        images = _list_images(root / "images", root)
        # of several splits the one for validation
        names = {f.relative_to(root / "images").parts[0] for f in images}
        split = next((s for s in _SPLITS if s in names), "")
        if split:
            images = [f for f in images if f.relative_to(root / "images").parts[0] == split]
    notes = [_label_file(image, root) for image in images]
    present = [f for f in notes if f.is_file()]
    rows = [parse_labels(f, _parse) if f.is_file() else np.zeros((0, 5)) for f in notes]
    if not present:
        raise DataError(
            "data-labels",
            f"{path}: none of {plural(len(images), 'image')} has a label file, such as {notes[0]}"
            if notes
            else f"{path} has no images",
        )
    classes = len(np.unique(np.concatenate([r[:, 0] for r in rows])))
    part = f", split {split}" if split else ""
    what = f"images with boxes of {plural(classes, 'class', 'classes')} (YOLO text{part})"
    return LabeledImages(path, inputs, what, images, partial(_label, rows), [*origins, *present])


def _read_split(file: Path, root: Path) -> tuple[str, list[Path]]:
    """Return name and images of the split that data.yaml has for validation."""
    data = read_yaml(file)
    if not isinstance(data, dict):
        raise DataError("labels-corrupt", f"labels {file} are damaged: no table of splits")
    split = next((s for s in _SPLITS if data.get(s)), None)
    if split is None:
        raise DataError("labels-corrupt", f"labels {file} are damaged: no val, test or train")
    base = _enter(root, str(data.get("path") or "."))
    places = data[split] if isinstance(data[split], list) else [data[split]]
    images = []
    for place in places:
        where = _enter(base, str(place))
        images += _list_images(where, root)
    return split, images


def _enter(base: Path, name: str) -> Path:
    """Return a folder or list that data.yaml names.

    Some tools write "../val/images" for val/images beside the file, or the name of the folder that
    the file is in.
    """
    stripped = name
    while stripped.startswith("../"):
        stripped = stripped[3:]
    for choice in dict.fromkeys((name, stripped)):
        if not Path(choice).is_absolute() and ".." not in Path(choice).parts:
            path = inside(base, choice)
            if path.exists():
                return path
    if Path(name).name == base.resolve().name:
        return base
    path = inside(base, name)
    raise DataError("data-missing", f"data.yaml names {name!r}, which is not at {path}")


def _list_images(place: Path, root: Path) -> list[Path]:
    """Return the images of a folder, or of a text file with one path per line."""
    if place.is_dir():
        return find_files(place, IMAGE_SUFFIXES, below=True)
    if place.suffix.lower() == ".txt":
        lines = read_label_text(place).split("\n")
        return [inside(root, line.strip()) for line in lines if line.strip()]
    raise DataError("data-missing", f"no images at {place}: neither a folder nor a list of images")


def _label_file(image: Path, root: Path) -> Path:
    """Return the text file of an image: labels/ instead of images/, else beside the image."""
    parts = list(image.relative_to(root).parts)
    places = [k for k, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")


def _parse(text: str) -> np.ndarray:
    """Return rows of class and upright corners as fractions, (m, 5).

    A line is a class and a box (center x, center y, width, height), or a class and the points of a
    polygon, as for segments and rotated boxes.
    """
    rows = []
    for line in text.splitlines():
        fields = [float(v) for v in line.split()]
        if not fields:
            continue
        kind, points = fields[0], np.array(fields[1:])
        if len(points) == 4:
            center, half = points[:2], points[2:] / 2
            rows.append([kind, *(center - half), *(center + half)])
        elif len(points) >= 6 and len(points) % 2 == 0:
            corners = points.reshape(-1, 2)
            rows.append([kind, *corners.min(0), *corners.max(0)])
        else:
            raise ValueError(f"{line!r} is not a class with a box or a polygon")
        if kind != int(kind) or kind < 0:
            raise ValueError(f"class {kind:g} is not a number of 0, 1, ...")
    table = np.array(rows).reshape(-1, 5)
    if not np.isfinite(table).all():
        raise ValueError("a box is not finite")
    return table


def _label(rows: list[np.ndarray], index: int, size: Size) -> Mapping[str, Any]:
    """Return the boxes of one image."""
    return {BOXES: box_rows(rows[index][:, 0], rows[index][:, 1:])}


YOLO = Format(_detect, _open)
