"""Description of one recipe option, attached to its dataclass field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune import RENAMED_OPTIONS
from onnxprune.data.presets import expand_preset
from onnxprune.errors import UsageError, unknown
from onnxprune.named import shown
from onnxprune.run.target import Target


@dataclass(frozen=True)
class Option:
    """Description of one field of `Recipe`.

    Attributes
    ----------
    parse
        Convert text or a plain value to the field's type; ValueError if it does not fit.
    stage
        First stage of a run that depends on the option.
    help
        One sentence for `--help` and the documents.
    metavar
        Placeholder of the value in `--help`, "" for a flag.
    repeatable
        Whether the flag may be given several times.
    """

    parse: Callable[[Any], Any]
    stage: str
    help: str
    metavar: str
    repeatable: bool = False

    @property
    def is_flag(self) -> bool:
        """Whether the option is a flag without a value."""
        return not self.metavar

    def validate(self, name: str, value: Any) -> Any:
        """Return the parsed value.

        Raises
        ------
        UsageError
            It does not fit; the message begins with the option's name.
        """
        try:
            return self.parse(value)
        except ValueError as problem:
            # a parser quotes the value, which is of any size, or fails to compare an array
            message = str(problem).replace(repr(value), shown(value))
            if hasattr(value, "__array__"):  # without numpy, which --help does not need
                message = f"{shown(value)} is not {self.metavar or 'true or false'}"
            raise UsageError("option-value", f"{name}: {message}") from problem
        # TOML and Python callers pass values of any type to parsers
        except TypeError as problem:
            raise UsageError(
                "option-value", f"{name}: {shown(value)} is not {self.metavar or 'true or false'}"
            ) from problem


def option_field(
    default: Any,
    parse: Callable[[Any], Any],
    stage: str,
    metavar: str,
    help: str,
    repeatable: bool = False,
) -> Any:
    """Return a dataclass field that carries its `Option`."""
    description = Option(parse, stage, help, metavar, repeatable)
    return dataclasses.field(default=default, metadata={"option": description})


def check_keys(
    values: Mapping[str, Any], where: str, known: Mapping[str, Option]
) -> dict[str, Any]:
    """Return the values under current option names, with those of a preset.

    Raises
    ------
    UsageError
        A key does not exist; `where` names its source in the message.
    """
    values = {RENAMED_OPTIONS.get(key, key): value for key, value in values.items()}
    for key in values:
        if key not in known:
            problem = unknown("key", key, known)
            raise UsageError("unknown-key", f"{where}: {problem.message}")
    return expand_preset(values)


def to_plain(value: Any) -> Any:
    """Return a parsed value as JSON and TOML hold it."""
    if isinstance(value, Target):
        return str(value)
    if isinstance(value, tuple):
        return [to_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: to_plain(entry) for key, entry in value.items()}
    return value
