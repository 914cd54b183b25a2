"""Conclusions of a report: verdicts on the result, and the commands to run next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnxprune.report.record import ReportRecord

GOOD, UNKNOWN, FAIR, BAD = "good", "unknown", "fair", "bad"
# UNKNOWN before FAIR: what was not measured is no loss
LEVELS = (GOOD, UNKNOWN, FAIR, BAD)  # from the best to the worst
DOUBT = "doubt"  # topic of the warnings that inputs or labels do not fit the model


@dataclass(frozen=True, eq=False)
class Verdict(ReportRecord):
    """Verdict on one aspect of the result.

    Attributes
    ----------
    aspect
        "cost", "quality" or "speed".
    level
        One of LEVELS.
    text
        The verdict with its figures.
    """

    aspect: str
    level: str
    text: str


@dataclass(frozen=True, eq=False)
class NextStep(ReportRecord):
    """A command to run next, quoted for the shell, and what it is for."""

    purpose: str
    command: str


def worst_level(levels: Iterable[str]) -> str:
    """Return the worst of some levels, UNKNOWN of none.

    >>> worst_level(["good", "bad", "fair"])
    'bad'
    """
    return max(levels, key=LEVELS.index, default=UNKNOWN)
