"""Classes of images: one subfolder per class, or a table of file names and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from onnxprune.data.inputs import Inputs
from onnxprune.data.label_formats.base import Format, LabeledImages, LabeledSource, Size
from onnxprune.data.label_formats.reading import inside, read_label_text, read_rows
from onnxprune.data.sources import IMAGE_SUFFIXES, find_files
from onnxprune.errors import DataError

_SPLITS = ("val", "valid", "validation", "test")
_ORDERS = ("LOC_synset_mapping.txt", "synset_words.txt", "synsets.txt", "classes.txt", "labels.txt")
_TABLES = (".csv", ".tsv", ".txt")
# titles of columns in lower case
_FILE_TITLES = "filename file_name file image image_id imageid path id".split()
_CLASS_TITLES = "label class class_id target category predictionstring category_id".split()


def _label(classes: Sequence[int], index: int, size: Size) -> Mapping[str, np.ndarray]:
    """Return the class of one image."""
    return {"labels": np.array(classes[index])}


def _detect_folders(path: Path) -> bool:
    return path.is_dir()


def _open_folders(path: Path, inputs: Inputs) -> LabeledSource:
    """Open a folder with one subfolder of images per class, or its split for validation.

    Classes are numbered by a list such as LOC_synset_mapping.txt or classes.txt, by the names of
    the subfolders if all are numbers, else by their sorted positions.
    """
    root = path
    names = _list_folders(root)
    splits = [s for s in _SPLITS if s in names]
    # train/ beside val/: the subfolders are splits, not classes
    if splits and set(names) <= {*_SPLITS, "train"} and _list_folders(root / splits[0]):
        root = root / splits[0]
        names = _list_folders(root)
    classes = _number_classes(names, (path, root))
    files: list[Path] = []
    labels: list[int] = []
    for name in names:
        own = find_files(root / name, IMAGE_SUFFIXES, below=True)
        files += own
        labels += [classes[name]] * len(own)
    if not files:
        raise DataError(
            "data-empty",
            f"{path} contains no subfolders with images; "
            "put labeled images into one subfolder per class",
        )
    what = f"images of {len(classes)} classes"
    if root != path:
        what += f" (split {root.name})"
    return LabeledImages(path, inputs, what, files, partial(_label, labels))


def _list_folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _number_classes(names: Sequence[str], places: Sequence[Path]) -> dict[str, int]:
    """Return class name -> index."""
    for place in places:
        for order in _ORDERS:
            if (place / order).is_file():
                return _read_order(place / order, names)
    # names that are numbers are class indices, so that 10 does not sort before 2
    numbered = all(n.isdecimal() for n in names)
    return {n: int(n) if numbered else k for k, n in enumerate(sorted(names))}


def _read_order(file: Path, names: Sequence[str]) -> dict[str, int]:
    """Return class name -> number of its line, whose first word, or whole, is the name."""
    lines = [line.strip() for line in read_label_text(file).splitlines() if line.strip()]
    words = {line.split()[0]: k for k, line in reversed(list(enumerate(lines)))}
    numbers = {**words, **{line: k for k, line in reversed(list(enumerate(lines)))}}
    missing = [name for name in names if name not in numbers]
    if missing:
        raise DataError(
            "labels-corrupt", f"{file} has no line for class {missing[0]!r}; add all classes to it"
        )
    return {name: numbers[name] for name in names}


def _find_table(path: Path) -> Path | None:
    """Return the table: the file itself, or the only one of a folder without class folders."""
    if not path.is_dir():
        return path if path.suffix.lower() in _TABLES else None
    tables = sorted(f for f in path.iterdir() if f.suffix.lower() in (".csv", ".tsv"))
    return tables[0] if len(tables) == 1 else None


def _detect_table(path: Path) -> bool:
    return _find_table(path) is not None


def _open_table(path: Path, inputs: Inputs) -> LabeledSource:
    """Open a table of image files and classes, with titles or without.

    Images are beside the table or in a subfolder. Classes are numbers, or names that are numbered
    as folders are.
    """
    table = _find_table(path)
    assert table is not None  # detected, or named by the user
    rows = read_rows(table)
    if not rows:
        raise DataError("labels-corrupt", f"labels {table} are damaged: no line")
    file_column, class_column, has_titles = _find_columns(rows[0])
    rows = rows[has_titles:]
    if any(len(row) <= max(file_column, class_column) for row in rows):
        raise DataError("labels-corrupt", f"labels {table} are damaged: a line has too few fields")
    # ImageNet's list has class and box in one field
    names = [row[class_column].split()[0] if row[class_column] else "" for row in rows]
    root = table.parent
    classes = _number_classes(sorted(set(names)), (root,))
    known = {f.stem: f for f in find_files(root, IMAGE_SUFFIXES, below=True)}
    files = [_find_image(root, row[file_column], known) for row in rows]
    what = f"images of {len(classes)} classes (table {table.name})"
    labels = [classes[name] for name in names]
    return LabeledImages(path, inputs, what, files, partial(_label, labels), [table])


def _find_columns(first: Sequence[str]) -> tuple[int, int, bool]:
    """Return the columns of file and class, and whether the first line has titles."""
    titles = [field.lower() for field in first]
    files = [titles.index(t) for t in _FILE_TITLES if t in titles]
    classes = [titles.index(t) for t in _CLASS_TITLES if t in titles]
    if files and classes:
        return files[0], classes[0], True
    return 0, min(1, len(first) - 1), False


def _find_image(root: Path, name: str, known: Mapping[str, Path]) -> Path:
    """Return the image of a name, with or without its folder and suffix."""
    path = inside(root, name)
    if path.is_file():
        return path
    stem = Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else Path(name).name
    return known.get(stem, path)


CLASS_FOLDERS = Format(_detect_folders, _open_folders, fallback=True)
CLASS_TABLE = Format(_detect_table, _open_table)
