"""Reading of label files: bounded in size, without entities, and confined to the data folder.

Label files come from others: they may be damaged, or made to exhaust memory or to read files
elsewhere. Each failure is a DataError of one sentence.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from xml.parsers import expat

from onnxprune.errors import DataError, MissingExtraError
from onnxprune.files import open_regular

MOST_BYTES = 512 << 20  # of one label file; that of COCO's training images has 448 MB
MOST_DEPTH = 50  # nested elements of XML
MOST_ROWS = 20_000_000  # lines of one file

T = TypeVar("T")


def read_label_text(path: Path) -> str:
    """Return the UTF-8 text of a label file."""
    try:
        with open_regular(path) as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise OSError(0, f"it has over {MOST_BYTES >> 20} MB, the limit for labels")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise DataError("labels-unreadable", f"cannot read labels {path}: {reason}") from problem


def parse_labels(path: Path, parse: Callable[[str], T]) -> T:
    """Return what a parser makes of a label file; DataError if it raises."""
    text = read_label_text(path)
    try:
        return parse(text)
    # parsers of damaged files raise many types; nesting may exceed the limit of recursion
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as problem:
        reason = f"no {problem}" if isinstance(problem, KeyError) else str(problem)
        reason = (reason.splitlines() or [type(problem).__name__])[0]
        raise DataError("labels-corrupt", f"labels {path} are damaged: {reason}") from problem


def read_json(path: Path) -> Any:
    """Return the value of a JSON file."""
    return parse_labels(path, json.loads)


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file, plain types only."""
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "yolo", f"reading {path.name}") from None

    def parse(text: str) -> Any:
        """Parse plain YAML; aliases are refused, as nested ones multiply."""
        try:
            if any(isinstance(t, yaml.AliasToken) for t in yaml.scan(text)):
                raise ValueError("it has aliases, which are not read")
            return yaml.safe_load(text)
        except yaml.YAMLError as problem:
            raise ValueError(f"it is not YAML: {problem}") from problem

    return parse_labels(path, parse)


class Element:
    """An XML element: its children by order, its text."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.children: list[Element] = []
        self.text = ""

    def all(self, name: str) -> Iterator[Element]:
        """Yield the children of a name."""
        return (child for child in self.children if child.name == name)

    def value(self, *names: str, default: str | None = None) -> str:
        """Return the text of the element at a path; KeyError if it is missing without a default."""
        element: Element | None = self
        for name in names:
            element = next(element.all(name), None) if element is not None else None
        if element is not None:
            return element.text.strip()
        if default is None:
            raise KeyError(f"<{'/'.join(names)}> in <{self.name}>")
        return default


def read_xml(path: Path) -> Element:
    """Return the root of an XML file.

    Document types are refused: entities can grow without bound or name other files.
    """
    return parse_labels(path, _parse_xml)


def _parse_xml(text: str) -> Element:
    root = Element("")
    stack = [root]

    def begin(name: str, attributes: dict[str, str]) -> None:
        """Open an element."""
        if len(stack) > MOST_DEPTH:
            raise ValueError(f"its elements are nested deeper than {MOST_DEPTH}")
        element = Element(name)
        stack[-1].children.append(element)
        stack.append(element)

    def add_text(data: str) -> None:
        """Append text to the open element."""
        stack[-1].text += data

    def refuse(*_: Any) -> None:
        """Reject a document type."""
        raise ValueError("it declares a document type, which labels need not have")

    parser = expat.ParserCreate()
    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda name: stack.pop()
    parser.CharacterDataHandler = add_text
    parser.StartDoctypeDeclHandler = refuse
    parser.buffer_text = True
    try:
        parser.Parse(text, True)
    except expat.ExpatError as problem:
        raise ValueError(f"it is not XML: {problem}") from problem
    return root.children[0]


def read_rows(path: Path) -> list[list[str]]:
    """Return the fields of each line that is not empty, separated by commas, tabs or spaces."""

    def parse(text: str) -> list[list[str]]:
        """Split by the separator of the first line."""
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > MOST_ROWS:
            raise ValueError(f"it has over {MOST_ROWS} lines")
        separator = next((s for s in (",", ";", "\t") if lines and s in lines[0]), None)
        if separator is None:
            return [line.split() for line in lines]
        try:
            return [
                [field.strip() for field in row] for row in csv.reader(lines, delimiter=separator)
            ]
        except csv.Error as problem:
            raise ValueError(str(problem)) from problem

    return parse_labels(path, parse)


def inside(root: Path, *parts: str) -> Path:
    """Return a path that a label file names; DataError if it leaves the data folder.

    Links are followed: a label file cannot make them.
    """
    name = os.path.join(*parts)
    # absolute: a relative root such as "." is no prefix of what is in it
    path, base = os.path.abspath(os.path.join(root, name)), os.path.abspath(root)
    if "\0" in name or (path != base and not path.startswith(os.path.join(base, ""))):
        raise DataError(
            "labels-outside",
            f"labels of {root} name {name!r}, which is outside that folder; put all files into it",
        )
    return Path(os.path.normpath(os.path.join(root, name)))
