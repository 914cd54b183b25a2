"""Recipe files: read and write a recipe as TOML."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from onnxprune.data import DATA_SOURCES
from onnxprune.data.label_formats import FORMATS
from onnxprune.errors import UsageError
from onnxprune.files import read_text
from onnxprune.run.option import check_keys
from onnxprune.run.recipe import OPTIONS, Recipe

MOST_CHARACTERS = 1 << 20  # parsers of TOML take over a hundred times as much memory
PROVENANCE = "provenance"  # table of a resolved recipe with its origin; ignored when read
_PATH_KEYS = frozenset(("data", "labeled"))
_CODE_KEYS = frozenset(("data", "metric", "losses", "decoder"))  # may name a Python function


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the values of a TOML recipe, keys checked, values not yet parsed.

    Relative paths of `data` and `labeled` are resolved against the folder of the file.

    Raises
    ------
    UsageError
        The file is not readable, not TOML, or has an unknown key.
    """
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        text = read_text(path)
        if len(text) > MOST_CHARACTERS:
            raise OSError(
                errno.EFBIG, f"it has over {MOST_CHARACTERS >> 20} MB, the limit for text"
            )
        values = tomllib.loads(text)
    except OSError as problem:
        inside = Path(path) / "recipe.toml"
        hint = f"; write {inside}" if inside.is_file() else ""
        raise UsageError(
            "recipe-unreadable", f"cannot read recipe {path}: {problem.strerror}{hint}"
        ) from problem
    # ValueError also for bytes that are not UTF-8; RecursionError for values nested too deep
    except (ValueError, RecursionError) as problem:
        raise UsageError("recipe-not-toml", f"recipe {path} is not TOML: {problem}") from problem
    values.pop(PROVENANCE, None)
    values = check_keys(values, f"recipe {path}", OPTIONS)
    return _resolve_paths(values, os.path.dirname(os.fspath(path)))


def read_data_only(
    path: str | os.PathLike[str], overridden: Collection[str] = ()
) -> dict[str, Any]:
    """Return the values of a recipe that runs no code, without the `overridden` keys.

    Raises
    ------
    UsageError
        A value names Python code, which must be named on the command line instead.
    """
    values = {name: value for name, value in read(path).items() if name not in overridden}
    for name in _CODE_KEYS & values.keys():
        entries = values[name] if isinstance(values[name], list) else [values[name]]
        # types are checked later, with the other values
        for entry in map(str, entries):
            if _names_code(name, entry):
                raise UsageError(
                    "recipe-code",
                    f"recipe {path}: {name} names Python code, {entry!r}; a recipe is data only, "
                    f"so pass it as an option: --{name} {entry}",
                )
    return values


def to_toml(recipe: Recipe, provenance: Mapping[str, str] | None = None) -> str:
    """Return the recipe as TOML that `read` accepts, with a table of its provenance.

    Paths are absolute, so that the file can be read from any folder.
    """
    # in TOML all keys after the header of a table belong to it, so tables follow all other values
    lines: list[str] = []
    tables: list[str] = []
    for name, value in _resolve_paths(recipe.plain(), os.getcwd()).items():
        if not isinstance(value, dict):
            lines.append(f"{name} = {_to_toml(value)}")
        elif value:
            rows = [f"{_to_toml(key)} = {_to_toml(entry)}" for key, entry in value.items()]
            tables += ["", f"[{name}]", *rows]
    if provenance:
        rows = [f"{key} = {_to_toml(value)}" for key, value in provenance.items()]
        tables += ["", f"[{PROVENANCE}]", *rows]
    return "\n".join([*lines, *tables]) + "\n"


def _names_code(key: str, entry: str) -> bool:
    """Return whether a value of one of _CODE_KEYS names a function of the user's."""
    if key != "data":
        return ":" in entry
    # paths and NAME:PATH of data sources have colons too
    return bool(re.search(r"\.py:\w*$", entry)) or entry.startswith("loader:")


def _resolve_paths(values: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return the values with their paths of inputs relative to `folder`."""
    result = dict(values)
    for name in _PATH_KEYS & values.keys():
        # values of other types are errors that are found later, with the other values
        if isinstance(values[name], str):
            result[name] = _resolve_data(folder, values[name])
        elif isinstance(values[name], list) and all(isinstance(v, str) for v in values[name]):
            result[name] = [_resolve_data(folder, entry) for entry in values[name]]
    return result


def _resolve_data(folder: str, spec: str) -> str:
    """Return a data specification with its path relative to `folder`.

    NAME:PATH names a data source or a labels format; a source's name alone is not a path.
    """
    name, colon, path = spec.partition(":")
    # a file of that name has priority
    if spec in DATA_SOURCES and not os.path.exists(os.path.join(folder, spec)):
        return spec
    if colon and (name in DATA_SOURCES or name in FORMATS):
        return f"{name}:{os.path.join(folder, path)}"
    return os.path.join(folder, spec)


def _to_toml(value: Any) -> str:
    """Return one TOML value."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_to_toml(v) for v in value) + "]"
    if isinstance(value, str):
        # TOML forbids the delete character, which JSON leaves unescaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
