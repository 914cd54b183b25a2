"""SIGINT and SIGTERM during a command: the first one unwinds the run, a second one ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

INTERRUPTED = 130  # exit code of shells for a program that Ctrl-C ends
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ENDED = b"error[interrupted]: ended at once; no output was written\n"


class Interrupts:
    """Handler of both signals.

    Attributes
    ----------
    count
        Signals so far. Libraries turn the KeyboardInterrupt of a signal into errors of their own,
        so that any failure after one is an interrupt.
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: Any) -> NoReturn:
        """Raise KeyboardInterrupt, or end the process on a second signal."""
        self.count += 1
        if self.count > 1:
            end()
        raise KeyboardInterrupt


def end() -> NoReturn:
    """End the process without cleaning up; every write is all or nothing."""
    os.write(2, _ENDED)
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Handle both signals in the block, unless the caller ignores them."""
    interrupts = Interrupts()
    before = {}
    hook = sys.unraisablehook

    def report(problem: Any) -> None:
        # raised where Python cannot raise, such as in a destructor: it would be lost
        if problem.exc_type is KeyboardInterrupt and interrupts.count:
            end()
        hook(problem)

    try:
        with contextlib.suppress(ValueError):  # signals can be set in the main thread only
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, interrupts)
        sys.unraisablehook = report
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def ignore_signals() -> None:
    """Ignore both signals: the result is final, only the end of the process is left."""
    with contextlib.suppress(ValueError):
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
