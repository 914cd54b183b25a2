"""Seconds left of a run, estimated from its events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from onnxprune.events import Event, Expected

# Work, in seconds of the reference machine, that the expectation weighs against measured stages:
# the first fractions of a second are imports and caches.
PRIOR_S = 1.0
PRIOR_SHARE = 0.1  # of a stage, that its expectation weighs against its progress
OVERDUE = 0.25  # a step that is later than expected takes this share of its time longer
STEADY = 0.2  # relative change of an estimate that does not interrupt the countdown


class TimeLeft:
    """Estimate of the seconds left, of the running stage and of the run.

    A stage is expected to take its time on a reference machine, multiplied by how much longer the
    finished stages took here. Within a stage, its measured progress replaces the expectation.

    Parameters
    ----------
    clock
        Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expected: dict[str, Expected] = {}  # of stages that have not ended
        self._known = False  # whether the stages of the run are known
        self._stage = ""
        self._began = self._at = 0.0
        self._share: float | None = None
        self._left_s: float | None = None
        self._actual = self._predicted = PRIOR_S
        self._shown: tuple[float, float] | None = None  # time and value of the last estimate

    def __call__(self, event: Event) -> None:
        """Process one event of the run."""
        now = self._clock()
        if event.state == "expect":
            self._known = True
            self._expected = dict(event.expected)
        elif event.state == "begin":
            self._stage, self._began, self._at = event.stage, now, now
            self._share = self._left_s = None
        elif event.state == "progress":
            # a share that decreases is that of another pass, which says nothing about the stage
            is_known = event.share is not None and event.share >= (self._share or 0.0)
            self._share = event.share if is_known else None
            self._left_s, self._at = event.left_s, now
        elif event.state in ("end", "reused"):
            self._end(event, now)

    @property
    def ahead(self) -> tuple[str, ...]:
        """Names of the stages that follow the running one, as far as they are known."""
        return tuple(name for name in self._expected if name != self._stage)

    def of_stage(self) -> float | None:
        """Return the seconds left of the running stage, None if unknown."""
        now = self._clock()
        since = now - self._at
        # never 0 while the stage runs
        least = OVERDUE * since
        if self._left_s is not None:
            return max(self._left_s - since, least)
        expected = self._expected.get(self._stage)
        predicted = self._scale(expected) if expected else None
        share = self._share or 0.0
        if not share:
            return None if predicted is None else max(predicted - (now - self._began), least)
        total = (self._at - self._began) / share
        if predicted:
            weight = share / (share + PRIOR_SHARE)
            total = math.exp(
                weight * math.log(max(total, 1e-3)) + (1 - weight) * math.log(predicted)
            )
        return max(total * (1 - share) - since, least)

    def of_run(self) -> float | None:
        """Return the seconds left of the run, None if unknown."""
        if not self._known:
            return None
        stage = self.of_stage() if self._stage else 0.0
        following = [self._scale(self._expected[name]) for name in self.ahead]
        if stage is None or None in following:
            self._shown = None
            return None
        estimate = stage + sum(seconds or 0.0 for seconds in following)
        now = self._clock()
        # a countdown is easier to follow than estimates that differ by a few percent
        if self._shown is not None:
            counted = self._shown[1] - (now - self._shown[0])
            if abs(counted - estimate) <= STEADY * estimate:
                estimate = counted
        self._shown = now, estimate
        return estimate

    def _end(self, event: Event, now: float) -> None:
        """Learn from the time of a stage."""
        expected = self._expected.pop(event.stage, None)
        if expected and expected.seconds and expected.scales and event.state == "end":
            self._actual += now - self._began
            self._predicted += expected.seconds
        self._stage = ""

    def _scale(self, expected: Expected) -> float | None:
        """Return how long a stage takes on this machine."""
        if expected.seconds is None or not expected.scales:
            return expected.seconds
        return expected.seconds * self._actual / self._predicted
