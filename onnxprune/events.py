"""Progress events emitted during a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One step of a stage.

    Attributes
    ----------
    stage
        Name of the stage.
    state
        "begin", "progress", "end", "reused", or "warning" for a sentence between two stages.
    seconds
        Time that the stage has taken.
    share
        Share of the stage that is done, from 0 to 1; None if unknown.
    detail
        One short phrase on what is being done, or on the result.
    left_s
        Seconds left, if known without a share.
    """

    stage: str
    state: str
    seconds: float = 0.0
    share: float | None = None
    detail: str = ""
    left_s: float | None = None


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore an event."""
