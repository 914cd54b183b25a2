"""Recipes as flags of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnxprune.data.presets import PRESET
from onnxprune.run.parsers import EVERY
from onnxprune.run.recipe import OPTIONS, Recipe

_COLON_NAMES = ("shape", "batch_axis")  # options that write NAME:VALUE, others NAME=VALUE


def to_flags(recipe: Recipe, *stages: str, without: tuple[str, ...] = ()) -> list[str]:
    """Return the flags of all options that differ from their defaults.

    Parameters
    ----------
    stages
        Only options of these stages; all if none is given.
    without
        Options that are left out.
    """
    default = Recipe()
    flags = []
    for name, option in OPTIONS.items():
        value = getattr(recipe, name)
        in_stages = not stages or option.stage in stages
        # the options that a preset stands for are spelled instead: values equal to a default
        # of theirs could not override it
        if name == PRESET or not in_stages or name in without or value == getattr(default, name):
            continue
        flag = "--" + name.replace("_", "-")
        if option.is_flag or isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif option.repeatable:
            flags += [part for text in _spell_all(name, value) for part in (flag, text)]
        else:
            flags += [flag, _spell(value, "x" if name in ("resize", "crop") else ",")]
    return flags


def _spell_all(name: str, value: Any) -> Iterator[str]:
    """Yield the values of a flag that may be repeated; "none" for no value."""
    if isinstance(value, Mapping):
        separator = ":" if name in _COLON_NAMES else "="
        for key, entry in value.items():
            # without a name where that means the same, as * is special to shells
            yield _spell(entry) if key == EVERY else f"{key}{separator}{_spell(entry)}"
        return
    values = [value] if isinstance(value, str) else value
    yield from map(_spell, values or ("none",))


def _spell(value: Any, separator: str = ",") -> str:
    """Return one value; the numbers of a list are joined."""
    if isinstance(value, tuple):
        return separator.join(map(_spell, value))
    return repr(value) if isinstance(value, float) else str(value)
