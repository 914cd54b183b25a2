"""What a run tells while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One moment of a stage.

    state: "begin", "progress", "end" or "reused"; share: of the stage's work that is done (0 to 1), None where nobody knows;
    left_s: seconds still to go where that is known without a share; seconds: the stage has taken; detail: one short phrase.
    """

    stage: str
    state: str
    seconds: float = 0.0
    share: float | None = None
    detail: str = ""
    left_s: float | None = None


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that does nothing."""
