"""Boxes of COCO's JSON format."""

from __future__ import annotations

import json
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
from onnxprune.data.label_formats.reading import inside, parse_labels
from onnxprune.errors import DataError, plural

_SECTIONS = ("images", "annotations", "categories")
# folders of images beside the JSON file or its folder, in which COCO's tools look
_IMAGE_FOLDERS = (".", "images", "val2017", "train2017", "test2017", "val2014", "val", "train")


def _find_files(path: Path) -> list[Path]:
    """Return the JSON files that may be annotations: the file itself, or those of a folder."""
    if not path.is_dir():
        return [path] if path.suffix.lower() == ".json" else []
    # exports of tools have theirs among the images; COCO has a folder
    own = sorted(path.glob("_annotations.coco.json"))
    return own or sorted((path / "annotations").glob("*.json")) or sorted(path.glob("*.json"))


def _detect(path: Path) -> bool:
    # data sets of other formats describe themselves in JSON too
    names = ("dataset_info.json", "dataset_dict.json", "state.json")
    return any(file.name not in names for file in _find_files(path))


def _open(path: Path, inputs: Inputs, ids: bool) -> LabeledSource:
    """Open annotations; with `ids`, classes are category ids instead of their positions."""
    files = _find_files(path)
    if len(files) > 1:
        names = ", ".join(str(f) for f in files[:4])
        raise DataError(
            "labels-choice", f"{path} has {len(files)} JSON files ({names}); pass one of them"
        )
    file = files[0].absolute()
    tables = parse_labels(file, partial(_parse, ids=ids))
    # annotations/ is beside the folders of images
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    images = [name for name, _ in tables]
    folder = _find_image_folder(root, file, images[0] if images else "")
    paths = [inside(root, folder, name) for name in images]
    rows = [boxes for _, boxes in tables]
    classes = len(np.unique(np.concatenate([r[:, 0] for r in rows]))) if rows else 0
    kind = "category ids" if ids else "COCO JSON"
    what = f"images with boxes of {plural(classes, 'class', 'classes')} ({kind} {file.name})"
    return LabeledImages(path, inputs, what, paths, partial(_label, rows), [file])


def _find_image_folder(root: Path, file: Path, name: str) -> str:
    """Return the folder below `root` that has the first image."""
    # instances_val2017.json is about val2017
    own = file.stem.rpartition("_")[2]
    for folder in (own, *_IMAGE_FOLDERS):
        if inside(root, folder, name).is_file():
            return folder
    return "."


def _parse(text: str, ids: bool) -> list[tuple[str, np.ndarray]]:
    """Return (file name, rows of class, x, y, width, height, crowd, area) per image."""
    data = json.loads(text)
    if not isinstance(data, dict) or any(not isinstance(data.get(s), list) for s in _SECTIONS):
        raise ValueError(f"COCO JSON has lists {', '.join(_SECTIONS)}")
    known = sorted({int(c["id"]) for c in data["categories"]})
    classes = {c: c if ids else k for k, c in enumerate(known)}
    rows: dict[Any, list[list[float]]] = {image["id"]: [] for image in data["images"]}
    for note in data["annotations"]:
        if note["image_id"] not in rows:
            raise ValueError(f"an annotation is of image {note['image_id']!r}, which is not listed")
        if note["category_id"] not in classes:
            raise ValueError(f"an annotation has the unknown category {note['category_id']!r}")
        x, y, width, height = map(float, note["bbox"])
        crowd, area = int(note.get("iscrowd") or 0), float(note.get("area") or 0)
        rows[note["image_id"]].append(
            [classes[note["category_id"]], x, y, width, height, crowd, area]
        )
    tables = []
    for image in data["images"]:
        table = np.array(rows[image["id"]], np.float64).reshape(-1, 7)
        if not np.isfinite(table).all():
            raise ValueError("a box is not finite")
        tables.append((str(image["file_name"]), table))
    return tables


def _label(rows: list[np.ndarray], index: int, size: Size) -> Mapping[str, np.ndarray]:
    """Return the boxes of one image of a size."""
    table = rows[index]
    scale = np.array([size[1], size[0]] * 2, np.float64)
    corners = np.concatenate([table[:, 1:3], table[:, 1:3] + table[:, 3:5]], 1) / scale
    return {BOXES: box_rows(table[:, 0], corners, table[:, 5], table[:, 6])}


COCO = Format(_detect, partial(_open, ids=False))
COCO_IDS = Format(lambda path: False, partial(_open, ids=True))
