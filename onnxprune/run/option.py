"""Description of one recipe option, attached to its dataclass field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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
