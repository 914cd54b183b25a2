"""Live table of the stages of a run on a terminal, drawn by rich.

Imported only when a run draws, so that nothing else waits for rich.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from onnxprune.cli.lines import STAGE_WIDTH, rounded, sentence, time_left_text
from onnxprune.cli.streams import EscapedStream
from onnxprune.cli.time_left import TimeLeft
from onnxprune.errors import printable
from onnxprune.events import Event
from onnxprune.report.text import is_ascii_only, legible

FRAMES_PER_S = 5
BAR_WIDTH = 30
NARROW = 60  # columns of a terminal without room for a bar
OTHER_LINES = 2  # of the terminal: the time, and the one on which the cursor waits


@dataclass
class _Row:
    """Row of the table.

    Attributes
    ----------
    event
        Last event of the stage.
    began
        When the stage began, by the monotonic clock.
    """

    event: Event
    began: float


class LiveTable:
    """Table of the stages on a terminal, drawn by rich: finished, running and following ones.

    The cursor is never hidden, so that no way to end the process leaves it invisible.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._before = stream, sys.stderr
        self._rows: list[_Row] = []
        self._left = TimeLeft()
        self._began = time.monotonic()
        self._is_running = True
        # rich writes control sequences; all texts pass `printable` before
        self._console = _Screen(
            file=cast("TextIO", _Control(stream)),
            force_terminal=True,
            markup=False,
            emoji=False,
            highlight=False,
        )
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=FRAMES_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def start(self) -> None:
        """Start drawing; lines that others write to stderr appear above the table."""
        proxy = cast("TextIO", FileProxy(self._console, self._stream))
        sys.stderr = cast("TextIO", EscapedStream(proxy))
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Draw the finished stages for the last time."""
        self._is_running = False
        self._live.stop()
        # apart from what follows
        if self._rows:
            self._console.line()
        sys.stderr = self._before

    def __call__(self, event: Event) -> None:
        """Process one event of the run; the next frame shows it."""
        self._left(event)
        if event.state in ("warning", "note"):
            self._console.print(Text(sentence(event), overflow="fold"))
        elif event.state == "begin":
            self._rows.append(_Row(event, time.monotonic()))
        elif event.state == "reused":
            self._rows.append(_Row(event, 0.0))
        elif self._rows and event.state in ("progress", "end"):
            self._rows[-1].event = event

    def _draw(self) -> RenderableType:
        """Return the table as it is now."""
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, min_width=STAGE_WIDTH - 2)
        table.add_column(no_wrap=True, justify="right", min_width=8)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        # a snapshot: the thread of the run appends while this one draws
        rows = list(self._rows)
        room = max(self._console.height - OTHER_LINES, 1)
        ahead = self._left.ahead if self._is_running else ()
        if self._is_running and len(rows) + len(ahead) > room:
            ahead = ahead[: max(room - len(rows), 0)]
            rows = rows[-room:]
        for row in rows:
            table.add_row(*self._describe(row))
        for name in ahead:
            table.add_row(Text(printable(name), style="dim"), "", "")
        return Group(table, self._draw_time()) if self._is_running else table

    def _draw_time(self) -> Table:
        """Return the bar of the run, and the time so far and left."""
        elapsed, left = time.monotonic() - self._began, self._left.of_run()
        line = Table.grid(padding=(0, 2, 0, 0))
        cells: list[RenderableType] = [f"{rounded(elapsed)} so far, {time_left_text(self._left)}"]
        if self._console.width >= NARROW:
            # without a total the bar shows that something happens
            total = None if left is None else elapsed + left
            cells.insert(
                0, ProgressBar(total, elapsed, BAR_WIDTH, complete_style="cyan", pulse_style="cyan")
            )
        line.add_row(*cells)
        return line

    def _describe(self, row: _Row) -> tuple[RenderableType, ...]:
        """Return the cells of a stage that has begun."""
        event = row.event
        name, detail = Text(printable(event.stage)), Text(printable(event.detail))
        if event.state == "end":
            return name, Text(f"{event.seconds:.2f} s"), detail
        if event.state == "reused":
            return name, Text("reused", style="dim"), detail
        name.stylize("bold cyan")
        elapsed = Text(f"{time.monotonic() - row.began:.0f} s")
        if event.share is None or not self._is_running:
            return name, elapsed, detail
        return name, elapsed, Text.assemble(f"{event.share:.0%}  ", detail)


class _Screen(Console):
    """A console that leaves the cursor visible."""

    def show_cursor(self, show: bool = True) -> bool:
        """Do nothing."""
        return False


class _Control:
    """File to which rich writes: a stream that passes control sequences."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        # the command line escapes control sequences in texts, see cli/streams.py
        self._control = getattr(stream, "control", stream.write)
        self.encoding = "ascii" if is_ascii_only(stream) else "utf-8"

    def write(self, text: str) -> int:
        """Write text and control sequences."""
        return int(self._control(legible(text, self._stream)) or 0)

    def __getattr__(self, name: str) -> object:
        """Return an attribute of the stream."""
        return getattr(self._stream, name)
