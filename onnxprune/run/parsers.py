"""Parsers of option values: from text (command line) or a plain value (TOML, Python) to a type.

Each raises ValueError with what is allowed. Parsing a parsed value returns it unchanged.
"""

from __future__ import annotations

import ast
import importlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from onnxprune.data.presets import LETTERBOX
from onnxprune.errors import unknown
from onnxprune.named import Named, describe, shown

Parser = Callable[[Any], Any]
CRITERION_NUMBERS = {
    "0": "l2",
    "1": "largest_l2",
    "2": "l1",
    "3": "largest_l1",
    "4": "bn_scale",
    "5": "bn_scale*l1",
    "6": "random",
}
EVERY = (
    "*"  # in place of a name: all inputs or groups; of shapes, which are not alike: the only one
)
LARGEST_INTEGER = (1 << 31) - 1  # of seeds and samples; larger values are almost certainly typos
# names that people type -> names of the registries
METRIC_NAMES = {
    "accuracy": "top1",
    "acc": "top1",
    "top-1": "top1",
    "top-5": "top5",
    "map": "coco",
    "iou": "miou",
    "mean_iou": "miou",
}
ENGINE_NAMES = {
    "ort": "onnxruntime",
    "cpu": "onnxruntime",
    "gpu": "onnxruntime-cuda",
    "cuda": "onnxruntime-cuda",
    "trt": "tensorrt",
}
PRECISION_NAMES = {
    "fp32": "f32",
    "float32": "f32",
    "fp16": "f16",
    "half": "f16",
    "float16": "f16",
    "bfloat16": "bf16",
    "i8": "int8",
}
MOST_THREADS = 1024  # each of them takes time and memory to start
_FALSE, _TRUE = ("false", "no", "off", "0"), ("true", "yes", "on", "1")


def text(value: Any) -> str:
    """Return non-empty text; a path is converted to text."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError(f"{value!r} is not text")
    return value if isinstance(value, Named) else str(os.fspath(value))


def source(value: Any) -> str:
    """Return the text that names data, or the name of an object that holds them."""
    if isinstance(value, (str, os.PathLike)):
        return text(value)
    if not is_source(value):
        raise ValueError(
            f"{shown(value)} is neither a path nor data: arrays by input name, an array, or an "
            "iterable of feeds"
        )
    return Named(describe(value), value)


def is_source(value: Any) -> bool:
    """Return whether an object can hold samples; texts in a list are paths, not samples."""
    if isinstance(value, (list, tuple)):
        return bool(value) and not any(isinstance(v, (str, os.PathLike)) for v in value)
    reads = ("__array__", "__iter__", "__getitem__", "batches")
    return callable(value) or any(hasattr(value, name) for name in reads)


def function(value: Any) -> str:
    """Return `module:function`, or the name of a function that was passed itself."""
    return text(Named(describe(value), value) if callable(value) else value)


def functions(value: Any) -> tuple[str, ...]:
    """Return names as `names` does; functions and classes among them are passed themselves."""
    entries = value if isinstance(value, (list, tuple)) else [value]
    return names([function(entry) if callable(entry) else entry for entry in entries])


def paths(value: Any) -> str | tuple[str, ...] | None:
    """Return one path, several paths, or None for none; an object stands for its data."""
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) and is_source(value):
        return source(value)
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    result = tuple(text(entry) for entry in entries)
    if len(result) > 1:
        return result
    return result[0] if result else None


def flag(value: Any) -> bool:
    """Return a Boolean, also from words such as "yes" and "off"."""
    word = str(value).lower()
    if isinstance(value, (bool, str)) and word in (*_FALSE, *_TRUE):
        return word in _TRUE
    raise ValueError(f"{value!r} is neither true nor false")


def integer(low: int, high: int = LARGEST_INTEGER) -> Parser:
    """Return a parser of integers from `low` to `high`."""

    def parse(value: Any) -> int:
        try:
            # Booleans are integers to Python; 8.0 passes, as some writers of JSON write 8
            if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
                raise ValueError
            result = int(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{value!r} is not an integer") from None
        if result < low:
            raise ValueError(f"{result} is less than {low}")
        if result > high:
            raise ValueError(f"{result} is greater than {high}")
        return result

    return parse


def integer_or_auto(low: int) -> Parser:
    """Return a parser of integers of at least `low`, or "auto"."""
    parse_integer = integer(low)

    def parse(value: Any) -> int | str:
        return "auto" if value == "auto" else parse_integer(value)

    return parse


def number(low: float, above: bool = False) -> Parser:
    """Return a parser of finite numbers of at least `low`, or with `above`, more than `low`."""

    def parse(value: Any) -> float:
        result = _parse_finite(value)
        if result < low or (above and result == low):
            raise ValueError(f"{result:g} is not {'above' if above else 'at least'} {low:g}")
        return result

    return parse


def share(value: Any) -> float:
    """Return a share from 0 to 1, written as 0.9 or "90%"."""
    percent = isinstance(value, str) and value.strip().endswith("%")
    result = _parse_finite(value.strip()[:-1]) / 100 if percent else _parse_finite(value)
    if not 0 <= result <= 1:
        hint = f"; did you mean {result:g}%?" if 1 < result <= 100 and not percent else ""
        raise ValueError(f"{value!r} is not between 0 and 1 (0% and 100%){hint}")
    return result


def numbers(value: Any) -> tuple[float, ...]:
    """Return one or more numbers: a number, a list, or text separated by commas."""
    parts = value
    if isinstance(value, str):
        parts = value.split(",")
    # one number instead of a list, as TOML and Python callers may write it
    elif isinstance(value, (int, float)):
        parts = [value]
    result = tuple(_parse_finite(part) for part in parts)
    if not result:
        raise ValueError("at least one number is needed")
    return result


def counts(value: Any) -> tuple[int, ...]:
    """Return integers of at least 0: one, a list, or text separated by commas."""
    parse = integer(0)
    return tuple(parse(part) for part in _split_commas(value))


def names(value: Any) -> tuple[str, ...]:
    """Return names: one, a list, or text separated by commas; "none" is the empty list."""
    parts = tuple(text(part) for part in _split_commas(value))
    result = tuple(part if isinstance(part, Named) else part.strip() for part in parts)
    return () if result == ("none",) else result


def renamed(parse: Parser, names: Mapping[str, str]) -> Parser:
    """Return a parser of names that are also accepted under other names, in any case."""

    def parse_renamed(value: Any) -> Any:
        return tuple(names.get(name.lower(), name) for name in parse(value))

    return parse_renamed


def globs(value: Any) -> tuple[str, ...]:
    """Return name patterns: one, or a list; commas are part of a pattern."""
    return tuple(text(part) for part in ([value] if isinstance(value, str) else value))


def choice(*allowed: str) -> Parser:
    """Return a parser of one of a few words."""

    def parse(value: Any) -> str:
        word = value.lower() if isinstance(value, str) else value
        if word not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
        return str(word)

    return parse


def precision(value: Any) -> str:
    """Return a precision of engines, also from names such as "fp16"."""
    parse = choice("f32", "bf16", "f16", "int8")
    return str(parse(PRECISION_NAMES.get(str(value).lower(), value)))


def device(value: Any) -> str:
    """Return the name of a device."""
    # imported with the first value, so that `--help` does not need it
    module = importlib.import_module("onnxprune.engines.devices")
    return str(module.get_device(str(value)).name)


def name_in(module: str, registry: str) -> Parser:
    """Return a parser of names in a registry, or "auto"; an error suggests the closest name.

    The registry is imported with the first value, so that `--help` does not import it.
    """

    def parse(value: Any) -> str:
        known = getattr(importlib.import_module(module), registry)
        if value != "auto" and value not in known:
            raise unknown(known.kind, str(value), ("auto", *known))
        return str(value)

    return parse


def criterion(value: Any) -> str:
    """Return a criterion's name, "auto", or the name for a number of the layer-selection paper."""
    parse = name_in("onnxprune.criteria", "CRITERIA")
    return str(parse(CRITERION_NUMBERS.get(str(value), value)))


def candidates(value: Any) -> tuple[str, ...]:
    """Return pairs CRITERION+ALLOCATOR; "auto" alone, or "none"."""
    entries = names(value)
    if entries == ("auto",):
        return entries
    parse_allocator = name_in("onnxprune.allocators", "ALLOCATORS")
    # every entry's form is checked before any name is, so that a missing + is reported first
    pairs = [_split_candidate(entry) for entry in entries]
    return tuple(f"{criterion(name)}+{parse_allocator(allocator)}" for name, allocator in pairs)


def ratios(value: Any) -> Mapping[str, float]:
    """Return group name pattern -> share to remove.

    Accepted are GLOB=SHARE, one share for all groups, and [(group number, share), ...] as in the
    layer-selection paper; a number n becomes the key "#n".
    """
    parts = [value] if isinstance(value, (str, int, float)) else value
    # a table, as recipe files hold it
    if isinstance(parts, Mapping):
        return dict(mapping(share)(parts))
    result: dict[str, float] = {}
    for part in parts:
        result |= _parse_ratio(part)
    return result


def shape(value: Any) -> tuple[int, ...]:
    """Return axis lengths: 1,3,224,224 or 1x3x224x224 or a list."""
    parts = value.replace("x", ",").split(",") if isinstance(value, str) else value
    parse = integer(1)
    return tuple(parse(part) for part in parts)


def input_shape(value: Any) -> tuple[int, ...]:
    """Return axis lengths as `shape` does; -1 is an axis that remains dynamic."""
    parts = value.replace("x", ",").split(",") if isinstance(value, str) else value
    parse = integer(1)
    # before the parser, which accepts lengths from 1 only
    return tuple(-1 if str(part).strip() == "-1" else parse(part) for part in parts)


def input_shapes(value: Any) -> Mapping[str, tuple[int, ...]]:
    """Return input name -> axis lengths from NAME:1,3,224,224; without a name of the only input."""
    if not isinstance(value, Mapping):
        entries = list(value) if isinstance(value, (list, tuple)) else [value]
        # one shape as Python and TOML write it
        if entries and all(isinstance(length, int) for length in entries):
            entries = [",".join(map(str, entries))]
        # a shape alone consists of numbers, names do not
        value = [
            entry if re.search("[^-0-9x, ]", text(entry)) else f"{EVERY}:{entry}"
            for entry in entries
        ]
    return dict(mapping(input_shape, ":")(value))


def batch_axis(value: Any) -> int | str:
    """Return the number of an axis, or "none"."""
    if str(value).strip().lower() == "none":
        return "none"
    try:
        return int(integer(0)(value))
    except ValueError:
        raise ValueError(f"{value!r} is not the number of an axis from 0, or none") from None


def batch_axes(value: Any) -> Mapping[str, int | str]:
    """Return input name -> batch axis from NAME:AXIS; an axis without a name is that of all."""
    if not isinstance(value, Mapping):
        entries = [value] if isinstance(value, (str, int)) else value
        value = [text(e) if ":" in str(e) else f"{EVERY}:{e}" for e in entries]
    return dict(mapping(batch_axis, ":")(value))


def size(value: Any) -> int | tuple[int, int]:
    """Return one length (256), or height and width (224x320)."""
    parts = shape([value] if isinstance(value, int) else value)
    if len(parts) not in (1, 2):
        raise ValueError(f"{value!r} is not LENGTH or HEIGHTxWIDTH")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def resize(value: Any) -> int | tuple[int, int] | str:
    """Return a size, or "letterbox"."""
    if value == LETTERBOX:
        return LETTERBOX
    if isinstance(value, str) and value[:1].isalpha():
        raise ValueError(f"{value!r} is not LENGTH, HEIGHTxWIDTH or letterbox")
    return size(value)


def mapping(parse_value: Parser, separator: str = "=") -> Parser:
    """Return a parser of tables name -> value and of lists of NAME=VALUE.

    The last separator splits an entry: names may contain others.
    """

    def parse(value: Any) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            pairs = list(value.items())
        else:
            entries = [value] if isinstance(value, str) else value
            pairs = [_split_pair(text(entry), separator) for entry in entries]
        return {text(name): parse_value(v) for name, v in pairs}

    return parse


def optional(parse_value: Parser) -> Parser:
    """Return a parser that also accepts None."""

    def parse(value: Any) -> Any:
        return None if value is None else parse_value(value)

    return parse


def _split_commas(value: Any) -> Iterator[Any]:
    """Yield the entries of a value or a list, text split at commas."""
    for part in [value] if isinstance(value, (int, str)) else value:
        if isinstance(part, str) and not isinstance(part, Named):
            yield from part.split(",")
        else:
            yield part


def _split_candidate(entry: str) -> tuple[str, str]:
    """Return (criterion, allocator) of CRITERION+ALLOCATOR; a criterion's name may contain +."""
    name, plus, allocator = entry.rpartition("+")
    if not plus or "auto" in (name, allocator):
        raise ValueError(f"{entry!r} is not CRITERION+ALLOCATOR such as reconstruction+uniform")
    return name, allocator


def _parse_ratio(part: Any) -> Mapping[str, float]:
    """Return name pattern -> share of one entry."""
    if isinstance(part, (tuple, list)) and len(part) == 2:
        return {f"#{integer(0)(part[0])}": share(part[1])}
    if not isinstance(part, str):
        return {EVERY: share(part)}
    # before brackets, with which a name may begin
    if "=" in part:
        return dict(mapping(share)(part))
    # the paper's list as a shell passes it: one text
    if part.lstrip().startswith(("[", "(")):
        return {f"#{integer(0)(n)}": share(r) for n, r in _parse_pairs(part)}
    if not part.strip().lstrip("+-.")[:1].isdecimal():  # .5 and a wrong sign are numbers too
        raise ValueError(f"{part!r} is not NAME=VALUE")
    return {EVERY: share(part)}


def _parse_pairs(value: str) -> list[tuple[Any, Any]]:
    """Return the pairs of the text [(group number, share), ...]."""
    try:
        # literals only: the text may be of a recipe file, which runs no code
        literal = ast.literal_eval(value)
        return [(n, r) for n, r in (literal if isinstance(literal, list) else [literal])]
    except (ValueError, SyntaxError, TypeError):
        raise ValueError(f"{value!r} is not [(group number, share), ...]") from None


def _split_pair(entry: str, separator: str) -> tuple[str, str]:
    """Return (name, value) of NAME=VALUE."""
    name, middle, value = entry.rpartition(separator)
    if not middle or not name:
        raise ValueError(f"{entry!r} is not NAME{separator}VALUE")
    return name, value


def _parse_finite(value: Any) -> float:
    """Return a finite float."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number") from None
    # Booleans are numbers to float
    if not math.isfinite(result) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a finite number")
    return result
