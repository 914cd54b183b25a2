"""Progress events emitted during a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Expected(NamedTuple):
    """How long a stage will probably take.

    Attributes
    ----------
    seconds
        On the machine on which the expectations were fitted; None if unknown.
    fixed_s
        Seconds on top that do not depend on the machine, such as those given to a measurement.
    """

    seconds: float | None
    fixed_s: float = 0.0


@dataclass(frozen=True)
class Event:
    """One step of a stage.

    Attributes
    ----------
    stage
        Name of the stage.
    state
        "begin", "progress", "end", "reused"; between two stages, "warning" or "note" for a
        sentence, and "expect" for the stages that follow.
    seconds
        Time that the stage has taken.
    share
        Share of the stage that is done, from 0 to 1; None if unknown.
    detail
        One short phrase on what is being done, or on the result.
    left_s
        Seconds left, if known without a share.
    expected
        State "expect": the stages that follow, in order.
    """

    stage: str
    state: str
    seconds: float = 0.0
    share: float | None = None
    detail: str = ""
    left_s: float | None = None
    expected: Mapping[str, Expected] = field(default_factory=dict)


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore an event."""
