"""Output streams of the command line: names from files show as text and never act on a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from onnxprune.errors import printable


class EscapedStream:
    """Text stream that escapes what is not printable, except ends of lines.

    Whatever is not defined here is that of the stream below.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the stream below."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write escaped text."""
        self._stream.write("\n".join(map(printable, text.split("\n"))))
        return len(text)

    def control(self, text: str) -> int:
        """Write control sequences of the program itself."""
        return self._stream.write(text)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Escape stdout and stderr; a closed one is replaced by the null device."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        streams = []
        for stream in before:
            if stream is None:
                null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - the stack closes it
                stream = stack.enter_context(null)
            # a locale without the characters of a name is no reason to fail
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
            streams.append(EscapedStream(stream))
        sys.stdout, sys.stderr = streams  # type: ignore[assignment]  # delegates to a TextIO
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
