"""Readers of option values: from text (command line) or a plain value (TOML, Python) to what a Recipe holds.

Each raises ValueError with a sentence that says what is allowed; a value that was read once reads as itself.
"""

from __future__ import annotations

import ast
import importlib
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from onnxprune.errors import unknown

Reader = Callable[[Any], Any]
CRITERION_NUMBERS = {
    "0": "l2",
    "1": "largest_l2",
    "2": "l1",
    "3": "largest_l1",
    "4": "bn_scale",
    "5": "bn_scale*l1",
    "6": "random",
}
_FALSE, _TRUE = ("false", "no", "off", "0"), ("true", "yes", "on", "1")


def text(value: Any) -> str:
    """Non-empty text; a path is text."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError(f"{value!r} is not text")
    return str(os.fspath(value))


def flag(value: Any) -> bool:
    """A yes or no."""
    word = str(value).lower()
    if isinstance(value, (bool, str)) and word in (*_FALSE, *_TRUE):
        return word in _TRUE
    raise ValueError(f"{value!r} is neither true nor false")


LARGEST_INTEGER = 1 << 31  # seeds, samples, threads: more is a slip of the pen


def integer(low: int) -> Reader:
    """A whole number of `low` or more, and below LARGEST_INTEGER."""

    def read(value: Any) -> int:
        try:
            if isinstance(value, bool) or isinstance(value, float) and value != int(value):
                raise ValueError
            found = int(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{value!r} is not a whole number") from None
        if found < low:
            raise ValueError(f"{found} is less than {low}")
        if found >= LARGEST_INTEGER:
            raise ValueError(f"{found} is not below {LARGEST_INTEGER}")
        return found

    return read


def whole_or_auto(low: int) -> Reader:
    """A whole number, or "auto"."""
    whole = integer(low)

    def read(value: Any) -> int | str:
        return "auto" if value == "auto" else whole(value)

    return read


def number(low: float, above: bool = False) -> Reader:
    """A finite number of at least (`above`: more than) `low`."""

    def read(value: Any) -> float:
        found = _finite(value)
        if found < low or above and found == low:
            raise ValueError(f"{found:g} is not {'above' if above else 'at least'} {low:g}")
        return found

    return read


def share(value: Any) -> float:
    """A part of a whole: 0.9 or "90%", from 0 to 1."""
    percent = isinstance(value, str) and value.strip().endswith("%")
    found = _finite(value.strip()[:-1]) / 100 if percent else _finite(value)
    if not 0 <= found <= 1:
        raise ValueError(f"{value!r} is not between 0 and 1 (0% and 100%)")
    return found


def numbers(value: Any) -> tuple[float, ...]:
    """One number or more: a number, a list, or text with commas."""
    parts = (
        value.split(",")
        if isinstance(value, str)
        else [value]
        if isinstance(value, (int, float))
        else value
    )
    found = tuple(_finite(v) for v in parts)
    if not found:
        raise ValueError("at least one number is needed")
    return found


def counts(value: Any) -> tuple[int, ...]:
    """Whole numbers of 0 or more: one, a list, or text with commas."""
    parts = [value] if isinstance(value, (int, str)) else value
    return tuple(
        integer(0)(p)
        for part in parts
        for p in (part.split(",") if isinstance(part, str) else [part])
    )


def names(value: Any) -> tuple[str, ...]:
    """One name or several, as a list or as text with commas; "none" is the empty list."""
    parts = value.split(",") if isinstance(value, str) else list(value)
    found = tuple(
        text(p).strip()
        for part in parts
        for p in (part.split(",") if isinstance(part, str) else [part])
    )
    return () if found == ("none",) else found


def globs(value: Any) -> tuple[str, ...]:
    """Name patterns as they are: one, or a list; a comma belongs to the pattern."""
    return tuple(text(part) for part in ([value] if isinstance(value, str) else value))


def choice(*allowed: str) -> Reader:
    """One of a few words."""

    def read(value: Any) -> str:
        word = value.lower() if isinstance(value, str) else value
        if word not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
        return str(word)

    return read


def name_in(module: str, registry: str) -> Reader:
    """A name that a registry knows, or "auto"; the error of an unknown one names the nearest."""

    def read(value: Any) -> str:
        found = getattr(importlib.import_module(module), registry)
        if value != "auto" and value not in found:
            raise unknown(found.kind, str(value), ("auto", *found))
        return str(value)

    return read


def criterion(value: Any) -> str:
    """A criterion's name, "auto", or a number that the layer-selection paper gives it: 0 l2 to 6 random."""
    return str(name_in("onnxprune.criteria", "CRITERIA")(CRITERION_NUMBERS.get(str(value), value)))


def candidates(value: Any) -> tuple[str, ...]:
    """Pairs CRITERION+ALLOCATOR; "auto" alone, or "none"."""
    found = names(value)
    if found == ("auto",):
        return found
    pairs = [part.rpartition("+") for part in found]
    for (name, plus, allocator), part in zip(pairs, found, strict=False):
        if not plus or "auto" in (name, allocator):
            raise ValueError(f"{part!r} is not CRITERION+ALLOCATOR such as reconstruction+uniform")
    allocators = name_in("onnxprune.allocators", "ALLOCATORS")
    return tuple(f"{criterion(name)}+{allocators(allocator)}" for name, _, allocator in pairs)


def ratios(value: Any) -> Mapping[str, float]:
    """GLOB=SHARE, one share for all groups, or [(number of a group, share), ...] as the layer-selection paper writes it."""
    parts = [value] if isinstance(value, (str, int, float)) else value
    if isinstance(parts, Mapping):
        return mapping(share)(parts)
    found: dict[str, float] = {}
    for part in parts:
        if isinstance(part, str) and "=" in part:
            found |= mapping(share)(part)
        elif isinstance(part, str) and part.lstrip().startswith(("[", "(")):
            found |= {f"#{integer(0)(n)}": share(r) for n, r in _pairs(part)}
        elif isinstance(part, (tuple, list)) and len(part) == 2:
            found[f"#{integer(0)(part[0])}"] = share(part[1])
        elif isinstance(part, str) and not part.strip()[:1].isdecimal():
            raise ValueError(f"{part!r} is not NAME=VALUE")
        else:
            found["*"] = share(part)
    return found


def _pairs(value: str) -> list[tuple[Any, Any]]:
    try:
        read = ast.literal_eval(value)
        return [(n, r) for n, r in (read if isinstance(read, list) else [read])]
    except (ValueError, SyntaxError, TypeError):
        raise ValueError(f"{value!r} is not [(number of a group, share), ...]") from None


def shape(value: Any) -> tuple[int, ...]:
    """Axis lengths: 1,3,224,224 or 1x3x224x224 or a list."""
    parts = value.replace("x", ",").split(",") if isinstance(value, str) else value
    return tuple(integer(1)(p) for p in parts)


def size(value: Any) -> int | tuple[int, int]:
    """One length (256) or height and width (224x320)."""
    parts = shape([value] if isinstance(value, int) else value)
    if len(parts) not in (1, 2):
        raise ValueError(f"{value!r} is not LENGTH or HEIGHTxWIDTH")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def mapping(read_value: Reader, separator: str = "=") -> Reader:
    """A table name -> value, or a list of NAME=VALUE (the last separator counts, names may hold others)."""

    def read(value: Any) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            pairs = list(value.items())
        else:
            pairs = [
                _pair(text(item), separator)
                for item in ([value] if isinstance(value, str) else value)
            ]
        return {text(k): read_value(v) for k, v in pairs}

    return read


def optional(read_value: Reader) -> Reader:
    """None, or what `read_value` reads."""

    def read(value: Any) -> Any:
        return None if value is None else read_value(value)

    return read


def _pair(item: str, separator: str) -> tuple[str, str]:
    name, found, value = item.rpartition(separator)
    if not found or not name:
        raise ValueError(f"{item!r} is not NAME{separator}VALUE")
    return name, value


def _finite(value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number") from None
    if not math.isfinite(found) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a finite number")
    return found
