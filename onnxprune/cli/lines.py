"""Progress of a run as lines, for logs, and the texts that it shares with the live table."""

from __future__ import annotations

import threading
import time
from typing import TextIO

from onnxprune.cli.time_left import TimeLeft
from onnxprune.errors import printable
from onnxprune.events import Event
from onnxprune.report.text import legible

TICK_S = 0.2  # interval at which a long stage is looked at
FIRST_LINE_S = 10.0  # of a stage
LINE_GROWTH = 1.5  # so that a stage of an hour has fifteen lines instead of 360
STAGE_WIDTH = 12


class Lines:
    """One line per stage, for logs; further ones, ever less often, while a stage takes long.

    A thread writes while the stage reports nothing.
    """

    def __init__(self, stream: TextIO) -> None:
        self._out = stream
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._left = TimeLeft()
        self._running: Event | None = None
        self._began = self._next = 0.0
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._ticker.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stop.set()
        if self._ticker.is_alive():
            self._ticker.join()

    def __call__(self, event: Event) -> None:
        """Process one event of the run."""
        # events come from the run, ticks from the thread; lines of both must not mix
        with self._lock:
            self._left(event)
            if event.state == "begin":
                self._running, self._began = event, time.monotonic()
                self._next = FIRST_LINE_S
            # without writing: the thread does at its own intervals
            elif event.state == "progress":
                self._running = event
            elif event.state in ("warning", "note"):
                self._write(sentence(event))
            elif event.state != "expect":
                self._running = None
                self._write(finished_line(event))

    def _tick(self) -> None:
        """Write a line of the running stage at growing intervals until it is stopped."""
        while not self._stop.wait(TICK_S):
            with self._lock:
                elapsed = time.monotonic() - self._began
                if self._running and elapsed >= self._next:
                    self._next = elapsed * LINE_GROWTH
                    self._write(running_line(self._running, elapsed, self._left))

    def _write(self, line: str) -> None:
        """Write a line at once."""
        self._out.write(legible(f"{line}\n", self._out))
        self._out.flush()


def sentence(event: Event) -> str:
    """Return the line of a warning or a note."""
    prefix = "warning: " if event.state == "warning" else ""
    return prefix + printable(event.detail)


def finished_line(event: Event) -> str:
    """Return the line of a finished stage.

    >>> finished_line(Event("score", "end", 3.2, detail="12 groups"))
    'score           3.20 s  12 groups'
    """
    seconds = f"{event.seconds:8.2f} s" if event.state == "end" else "  reused  "
    return f"{event.stage:<{STAGE_WIDTH}}{seconds}  {printable(event.detail)}".rstrip()


def running_line(event: Event, elapsed: float, left: TimeLeft) -> str:
    """Return the line of a running stage in a log.

    Parameters
    ----------
    event
        Last event of the stage.
    elapsed
        Seconds since the stage began.
    """
    share = f"{event.share:.0%}, " if event.share else ""
    line = f"{event.stage:<{STAGE_WIDTH}}  {share}{elapsed:.0f} s, {time_left_text(left)}"
    return f"{line}  {printable(event.detail)}" if event.detail else line


def time_left_text(left: TimeLeft) -> str:
    """Return the time left of the run, of the stage if only that is known, or "unknown"."""
    seconds = left.of_run()
    if seconds is not None:
        return f"about {rounded(seconds)} left"
    seconds = left.of_stage()
    if seconds is not None:
        return f"about {rounded(seconds)} left in this stage"
    return "time left unknown"


def rounded(seconds: float) -> str:
    """Return a duration as exact as an estimate is.

    >>> [rounded(s) for s in (0.2, 7, 38, 100, 1700, 9000)]
    ['1 s', '7 s', '40 s', '1 min 40 s', '28 min', '2 h 30 min']
    """
    if seconds < 20:
        return f"{max(round(seconds), 1)} s"
    if seconds < 57.5:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 300:
        tens = 10 * round(seconds / 10)
        return f"{tens // 60} min" + (f" {tens % 60} s" if tens % 60 else "")
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
