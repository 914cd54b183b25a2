"""Boxes of Pascal VOC's format: one XML file per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
from onnxprune.data.label_formats.reading import Element, inside, read_label_text, read_xml
from onnxprune.data.sources import IMAGE_SUFFIXES
from onnxprune.errors import DataError, plural

# order of the published classes, which detectors trained on VOC have
VOC_CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor".split()
)
_SPLITS = ("val", "test", "trainval", "train")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class Picture(NamedTuple):
    """One XML file: the image's name, and its objects as class, corners in pixels, difficult."""

    image: str
    names: list[str]
    corners: np.ndarray
    difficult: list[bool]


def _detect(path: Path) -> bool:
    return path.is_dir() and bool(_list_notes(path))


def _list_notes(path: Path) -> list[Path]:
    """Return the XML files: those of Annotations, else those of the folder."""
    own = path / "Annotations"
    return sorted((own if own.is_dir() else path).glob("*.xml"))


def _open(path: Path, inputs: Inputs) -> LabeledSource:
    notes = _list_notes(path)
    split = next((s for s in _SPLITS if (path / "ImageSets" / "Main" / f"{s}.txt").is_file()), "")
    if split:
        listed = read_label_text(path / "ImageSets" / "Main" / f"{split}.txt").split()
        chosen = set(listed)
        notes = [note for note in notes if note.stem in chosen]
    pictures = [_read(note) for note in notes]
    names = {name for picture in pictures for name in picture.names}
    # classes of other data are in alphabetical order
    order = VOC_CLASSES if names <= set(VOC_CLASSES) else tuple(sorted(names))
    images = [
        _find_image(path, note, picture.image)
        for note, picture in zip(notes, pictures, strict=True)
    ]
    part = f", split {split}" if split else ""
    what = f"images with boxes of {plural(len(order), 'class', 'classes')} (Pascal VOC{part})"
    classes = {name: k for k, name in enumerate(order)}
    return LabeledImages(path, inputs, what, images, partial(_label, pictures, classes), notes)


def _find_image(path: Path, note: Path, name: str) -> Path:
    """Return the image of an XML file, by its own name or by that of the file."""
    folders = (path / "JPEGImages", path / "images", note.parent)
    known = [folder for folder in folders if folder.is_dir()]
    choices = [inside(folder, name) for folder in known if name]
    choices += [folder / f"{note.stem}{end}" for folder in known for end in IMAGE_SUFFIXES]
    return next((file for file in choices if file.is_file()), choices[0])


def _read(note: Path) -> Picture:
    """Return one XML file."""
    try:
        return _parse(read_xml(note))
    except (KeyError, ValueError) as problem:
        reason = f"no {problem.args[0]}" if isinstance(problem, KeyError) else problem
        raise DataError("labels-corrupt", f"labels {note} are damaged: {reason}") from problem


def _parse(root: Element) -> Picture:
    objects = list(root.all("object"))
    corners = [[float(o.value("bndbox", side)) for side in _SIDES] for o in objects]
    table = np.array(corners).reshape(-1, 4)
    if not np.isfinite(table).all():
        raise ValueError("a box is not finite")
    return Picture(
        root.value("filename", default=""),
        [o.value("name") for o in objects],
        table,
        [o.value("difficult", default="0") == "1" for o in objects],
    )


def _label(
    pictures: Sequence[Picture], classes: Mapping[str, int], index: int, size: Size
) -> Mapping[str, np.ndarray]:
    """Return the boxes of one image; difficult ones count neither as hits nor as misses."""
    picture = pictures[index]
    # pixels are counted from 1, and the last one belongs to the box
    shifted = picture.corners - np.array([1, 1, 0, 0])
    corners = shifted / np.array([size[1], size[0]] * 2, np.float64)
    kinds = [classes[name] for name in picture.names]
    return {BOXES: box_rows(kinds, corners, picture.difficult)}


VOC = Format(_detect, _open)
