"""Seconds left of a run, estimated from its events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from onnxprune.events import Event, Expected

# Work, in seconds of the reference machine, that the expectation weighs against measured stages:
# the first tenths of a second are imports and caches.
PRIOR_S = 0.3
PRIOR_SHARE = 0.2  # of a stage, that its expectation weighs against its progress
OVERDUE = 0.25  # what is late takes this share of its delay longer
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
        self._ended: dict[str, Expected] = {}  # what those that have ended took
        self._known = False  # whether the stages of the run are known
        self._stage = ""
        self._began = self._at = 0.0
        self._share: float | None = None
        self._restarted = False  # whether a share of the running stage has decreased
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
            self._share, self._left_s, self._restarted = None, None, False
            self._arrive(event.stage)
        elif event.state == "progress":
            # a share that decreases is that of one of several parts, not of the stage
            self._restarted |= event.share is not None and event.share < (self._share or 0.0)
            self._share = None if self._restarted else event.share
            self._left_s, self._at = event.left_s, now
        elif event.state in ("end", "reused"):
            self._end(event, now)

    def _arrive(self, stage: str) -> None:
        """Drop the stages before this one, which were not needed; expect those of a repetition."""
        names = list(self._expected)
        for name in names[: names.index(stage)] if stage in names else []:
            del self._expected[name]
        ended = list(self._ended)
        # a plan that misses its target after the repair is made again, with all that follows
        if stage not in names and stage in ended:
            repeated = {name: self._ended[name] for name in ended[ended.index(stage) :]}
            self._expected = {**repeated, **self._expected}

    @property
    def ahead(self) -> tuple[str, ...]:
        """Names of the stages that follow the running one, as far as they are known."""
        return tuple(name for name in self._expected if name != self._stage)

    def of_stage(self) -> float | None:
        """Return the seconds left of the running stage, None if unknown."""
        since = self._clock() - self._at
        expected = self._expected.get(self._stage)
        predicted = self._scale(expected) if expected else None
        if self._left_s is not None:
            # what a stage knows is the least; starting an engine comes on top
            rest = (predicted or 0.0) - (self._at - self._began)
            return _count_down(max(self._left_s, rest), since)
        share = self._share or 0.0
        if not share:
            before = self._at - self._began
            return None if predicted is None else _count_down(predicted - before, since)
        total = (self._at - self._began) / share
        if predicted:
            weight = share / (share + PRIOR_SHARE)
            total = math.exp(
                weight * math.log(max(total, 1e-3)) + (1 - weight) * math.log(predicted)
            )
        return _count_down(total * (1 - share), since)

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
        if expected and expected.seconds and event.state == "end":
            self._actual += max(now - self._began - expected.fixed_s, 0.0)
            self._predicted += expected.seconds
        self._ended[event.stage] = Expected(0.0, event.seconds)
        self._stage = ""

    def _scale(self, expected: Expected) -> float | None:
        """Return how long a stage takes on this machine."""
        if expected.seconds is None:
            return None
        actual, predicted = self._actual, self._predicted
        running = self._expected.get(self._stage)
        # the first batches show the speed of this machine before a stage has ended
        if self._share and running and running.seconds:
            actual += self._at - self._began
            predicted += self._share * running.seconds
        return expected.seconds * actual / predicted + expected.fixed_s


def _count_down(left_s: float, since: float) -> float:
    """Return what remains of an estimate after a time, never 0.

    >>> [_count_down(10.0, since) for since in (0.0, 8.0, 48.0)]
    [10.0, 2.0, 10.0]
    """
    left_s = max(left_s, 0.0)
    # a little earlier than at 0, which would be wrong while the stage runs
    return max(left_s - since, OVERDUE * (since - 0.8 * left_s))
