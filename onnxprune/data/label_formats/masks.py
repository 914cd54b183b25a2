"""Masks of segmentation: folders of images and of masks with the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from onnxprune.data.images import MOST_PIXELS
from onnxprune.data.inputs import Inputs
from onnxprune.data.label_formats.base import Format, LabeledImages, LabeledSource, Size
from onnxprune.data.label_formats.reading import read_label_text
from onnxprune.data.preprocess import pillow
from onnxprune.data.sources import IMAGE_SUFFIXES, find_files
from onnxprune.errors import DataError
from onnxprune.files import open_regular

IGNORED = 255
_SPLITS = ("val", "valid", "validation", "test", "train", "training")
_IMAGE_FOLDERS = ("images", "image", "imgs", "JPEGImages")
_MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "SegmentationClass", "segmentation")
# Cityscapes: id of a label -> its number among the 19 that are evaluated
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_IMAGE_END, _IDS_END, _TRAIN_END = "_leftImg8bit", "_gtFine_labelIds", "_gtFine_labelTrainIds"


class Layout(NamedTuple):
    """Images and masks of a folder.

    Attributes
    ----------
    name
        Name for a report.
    images, masks
        Equally many files.
    """

    name: str
    images: list[Path]
    masks: list[Path]


def _detect(path: Path) -> bool:
    return path.is_dir() and _find_layout(path) is not None


def _find_layout(path: Path) -> Layout | None:
    return _find_cityscapes(path) or _find_voc(path) or _find_pairs(path)


def _find_cityscapes(path: Path) -> Layout | None:
    """Return images of leftImg8bit/ and masks of gtFine/, of the split for validation."""
    roots = path / "leftImg8bit", path / "gtFine"
    if not all(root.is_dir() for root in roots):
        return None
    split = next((s for s in _SPLITS if (roots[0] / s).is_dir() and (roots[1] / s).is_dir()), "")
    images, masks = [], []
    for image in find_files(roots[0] / split, IMAGE_SUFFIXES, below=True):
        place = roots[1] / split / image.parent.relative_to(roots[0] / split)
        stem = image.stem.removesuffix(_IMAGE_END)
        ends = (_TRAIN_END, _IDS_END)
        own = [place / f"{stem}{end}.png" for end in ends if (place / f"{stem}{end}.png").is_file()]
        images += [image] if own else []
        masks += own[:1]
    return Layout(f"Cityscapes, split {split}" if split else "Cityscapes", images, masks)


def _find_voc(path: Path) -> Layout | None:
    """Return the images of VOC that have a mask, of the split for validation if it is listed."""
    if not (path / "SegmentationClass").is_dir() or not (path / "JPEGImages").is_dir():
        return None
    masks = sorted((path / "SegmentationClass").glob("*.png"))
    lists = path / "ImageSets" / "Segmentation"
    split = next((s for s in _SPLITS if (lists / f"{s}.txt").is_file()), "")
    if split:
        chosen = set(read_label_text(lists / f"{split}.txt").split())
        masks = [mask for mask in masks if mask.stem in chosen]
    images = [path / "JPEGImages" / f"{mask.stem}.jpg" for mask in masks]
    return Layout(f"VOC masks, split {split}" if split else "VOC masks", images, masks)


def _find_pairs(path: Path) -> Layout | None:
    """Return images and masks with the same names, of folders such as images/ and masks/."""
    image_root = next((path / n for n in _IMAGE_FOLDERS if (path / n).is_dir()), None)
    mask_root = next((path / n for n in _MASK_FOLDERS if (path / n).is_dir()), None)
    if image_root is None or mask_root is None:
        return None
    split = next((s for s in _SPLITS if (image_root / s).is_dir() and (mask_root / s).is_dir()), "")
    known = {
        mask.relative_to(mask_root / split).with_suffix(""): mask
        for mask in find_files(mask_root / split, IMAGE_SUFFIXES, below=True)
    }
    images, masks = [], []
    for image in find_files(image_root / split, IMAGE_SUFFIXES, below=True):
        name = image.relative_to(image_root / split).with_suffix("")
        choices = (name, *(name.with_name(name.name + end) for end in ("_mask", "_label", "_L")))
        mask = next((known[c] for c in choices if c in known), None)
        images += [image] if mask else []
        masks += [mask] if mask else []
    if not masks:
        return None
    return Layout(f"masks, split {split}" if split else "masks", images, masks)


def _open(path: Path, inputs: Inputs) -> LabeledSource:
    layout = _find_layout(path)
    if layout is None:
        raise DataError("data-empty", f"{path} has no folders of images and of masks")
    label = partial(_label, layout.masks)
    what = f"images with masks ({layout.name})"
    return LabeledImages(path, inputs, what, layout.images, label, layout.masks)


def _label(masks: Sequence[Path], index: int, size: Size) -> Mapping[str, np.ndarray]:
    """Return the class of each pixel of one image."""
    mask = read_mask(masks[index])
    if mask.shape != size:
        raise DataError(
            "labels-corrupt",
            f"mask {masks[index]} has {mask.shape[0]}x{mask.shape[1]} pixels, its image has "
            f"{size[0]}x{size[1]}",
        )
    return {"masks": mask}


def read_mask(file: Path | BinaryIO, where: str = "") -> np.ndarray:
    """Return class indices, uint8 (height, width), IGNORED where there is no class.

    Gray and palette images hold the indices; ids of Cityscapes become its 19 classes; colors are
    those of VOC.

    Raises
    ------
    DataError
        The file is no image of 8 bits, or has colors of no class.
    """
    where = where or str(file)
    try:
        if isinstance(file, Path):
            open_regular(file).close()  # a named pipe would block the decoder
        with pillow().open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels exceed the limit")
            mode = image.mode
            if mode not in ("L", "P", "1", "RGB", "RGBA"):
                raise ValueError(f"its pixels are of mode {mode}; save indices with 8 bits")
            pixels = np.asarray(image.convert("RGB") if mode == "RGBA" else image)
    except Exception as problem:  # Pillow's decoders raise many types on invalid files
        reason = getattr(problem, "strerror", None) or problem
        raise DataError(
            "labels-corrupt", f"cannot read mask {where or file}: {reason}"
        ) from problem
    if isinstance(file, Path) and file.stem.endswith(_IDS_END):
        numbers = np.full(256, IGNORED, np.uint8)
        numbers[list(_CITYSCAPES_IDS)] = np.arange(len(_CITYSCAPES_IDS))
        return np.asarray(numbers[pixels])
    return (
        pixels.astype(np.uint8) if pixels.ndim == 2 else _decode_colors(pixels, where or str(file))
    )


def _decode_colors(pixels: np.ndarray, where: str) -> np.ndarray:
    """Return the class of each color (height, width, 3)."""
    keys = pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    known, order = _color_keys()
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    wrong = known[place] != keys
    if wrong.any():
        color = tuple(int(v) for v in pixels[np.unravel_index(wrong.argmax(), wrong.shape)])
        raise DataError(
            "labels-corrupt",
            f"mask {where} has color {color}, which is no class of VOC; save masks as 8-bit images "
            "of class indices",
        )
    return order[place]


@cache
def _color_keys() -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted colors of VOC's 256 classes as integers, and the class of each.

    Bits of the class index are spread over the highest bits of red, green and blue, three at a
    time.
    """
    index = np.arange(256)
    colors = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (index >> channel & 1) << (7 - bit)
        index = index >> 3
    keys = colors @ np.array([1 << 16, 1 << 8, 1])
    order = np.argsort(keys, kind="stable")
    return keys[order], order.astype(np.uint8)


MASKS = Format(_detect, _open)
