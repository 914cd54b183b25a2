"""Progress of a run on stderr: a live table on a terminal, lines anywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from onnxprune.cli.common import is_quiet
from onnxprune.cli.lines import Lines
from onnxprune.events import Event, Listener, silent

if TYPE_CHECKING:
    from onnxprune.cli.live import LiveTable


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Listener]:
    """Yield a listener that shows the events of a run as the stream allows; nothing with -q.

    Parameters
    ----------
    stream
        Where to write; default: stderr.
    """
    if is_quiet():
        yield silent
        return
    stream = stream or sys.stderr
    view = open_view(stream)
    try:
        # in the block: a signal during the start must end what has started
        view.start()
        yield view
    finally:
        view.stop()


def note_warnings(listener: Listener, shown: set[str]) -> Listener:
    """Return the listener; it also adds the warnings that it shows to a set."""
    if listener is silent:
        return silent

    def listen(event: Event) -> None:
        if event.state == "warning":
            shown.add(event.detail)
        listener(event)

    return listen


def open_view(stream: TextIO) -> Lines | LiveTable:
    """Return what shows a run on a stream."""
    if not can_redraw(stream):
        return Lines(stream)
    from onnxprune.cli.live import LiveTable

    return LiveTable(stream)


def can_redraw(stream: TextIO) -> bool:
    """Return whether lines on a stream can be written over."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
