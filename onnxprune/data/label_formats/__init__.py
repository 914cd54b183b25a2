"""Formats of labels: what people's data sets look like on disk, each a row of `FORMATS`.

A format is recognized from the names of files and folders. Where several fit, `NAME:PATH` chooses.
"""

from __future__ import annotations

from pathlib import Path

from onnxprune.data.inputs import Inputs
from onnxprune.data.label_formats.base import Format, LabeledSource
from onnxprune.errors import DataError
from onnxprune.registry import Registry

_HERE = "onnxprune.data.label_formats"

FORMATS = Registry(
    "labels format",
    "onnxprune.labels",
    {
        "npz": (f"{_HERE}.npz:NPZ", "one .npz file: images or inputs, and label arrays"),
        "coco": (f"{_HERE}.coco:COCO", "boxes: COCO JSON; classes are the sorted categories"),
        "coco-ids": (
            f"{_HERE}.coco:COCO_IDS",
            "as coco, but classes are the category ids, as torchvision's detectors have them",
        ),
        "yolo": (f"{_HERE}.yolo:YOLO", "boxes: YOLO text files, with data.yaml or without"),
        "voc": (f"{_HERE}.voc:VOC", "boxes: Pascal VOC XML, Annotations/ and JPEGImages/"),
        "masks": (
            f"{_HERE}.masks:MASKS",
            "masks: Cityscapes, VOC, or folders images/ and masks/",
        ),
        "table": (
            f"{_HERE}.classes:CLASS_TABLE",
            "classes: CSV or text of file names and classes",
        ),
        "datasets": (
            f"{_HERE}.huggingface:HUGGINGFACE",
            "classes, boxes or masks: a Hugging Face data set on disk",
        ),
        "folders": (
            f"{_HERE}.classes:CLASS_FOLDERS",
            "classes: one subfolder of images per class, as ImageNet",
        ),
    },
)


def parse_labeled(spec: str) -> tuple[str, Path]:
    """Return (name of a format or "", path) of `PATH` or `NAME:PATH`."""
    name, colon, rest = spec.partition(":")
    # a file or folder of that name has precedence
    if colon and name in FORMATS and not Path(spec).exists():
        return name, Path(rest)
    return "", Path(spec)


def open_source(spec: str | Path, inputs: Inputs) -> LabeledSource:
    """Open the labels of a file or folder.

    Raises
    ------
    DataError
        It does not exist, has no known format or several, or is damaged.
    """
    name, path = parse_labeled(str(spec))
    if not path.exists():
        raise DataError("data-missing", f"no data at {path}: the file or folder does not exist")
    if name:
        chosen: Format = FORMATS.get(name)
        return chosen.opens(path, inputs)
    fitting = {n: f for n, f in ((n, FORMATS.get(n)) for n in FORMATS) if f.detects(path)}
    preferred = {n: f for n, f in fitting.items() if not f.fallback} or fitting
    if not preferred:
        raise DataError(
            "data-kind",
            f"{path}: labels are an .npz file, COCO JSON, YOLO text with data.yaml, Pascal VOC "
            "XML, folders images/ and masks/, a table of files and classes, a Hugging Face data "
            "set, or one subfolder of images per class",
        )
    if len(preferred) > 1:
        choices = " or ".join(f"{n}:{path}" for n in preferred)
        raise DataError(
            "labels-choice", f"{path} has labels of several formats; choose one: {choices}"
        )
    return next(iter(preferred.values())).opens(path, inputs)


__all__ = ["FORMATS", "Format", "LabeledSource", "open_source", "parse_labeled"]
