"""Search for models that break a law, with new random examples until the time is over."""

from __future__ import annotations

import time
import traceback
from collections import Counter

from cut_laws import LAWS, MOST_BLOCKS, check
from hypothesis import HealthCheck, seed, settings

EXAMPLES_PER_LAW = 40
SEARCH = settings(
    max_examples=EXAMPLES_PER_LAW,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def hunt_laws(first: int, minutes: float) -> tuple[Counter[str], list[str]]:
    """Check all laws with one seed after another.

    Parameters
    ----------
    first
        First seed.
    minutes
        Time after which no further law is begun.

    Returns
    -------
    Number of checks by result ("held", "broken"), and one text per broken law with the smallest
    example that breaks it.
    """
    counts: Counter[str] = Counter()
    faults: list[str] = []
    deadline, number = time.monotonic() + 60 * minutes, first
    while True:
        for name in LAWS:
            if time.monotonic() >= deadline:
                return counts, faults
            fault = _check(name, number)
            counts["broken" if fault else "held"] += 1
            if fault:
                print(fault, flush=True)
                faults.append(fault)
        number += 1


def _check(name: str, number: int) -> str | None:
    """Check one law on the examples of a seed; return what breaks it."""
    try:
        seed(number)(SEARCH(check(LAWS[name], MOST_BLOCKS)))()
    except Exception as problem:
        notes = "\n".join(getattr(problem, "__notes__", ()))
        text = "".join(traceback.format_exception_only(problem)).strip()
        return f"law {name!r}, seed {number}: {text}\n{notes}"
    return None
