"""Run the programs of engines."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from onnxprune.engines.base import refusal
from onnxprune.errors import EngineError

CONVERT_SECONDS = 300


def run_program(
    name: str, command: Sequence[str], limit_s: float, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program, and return its status and its output as text.

    Parameters
    ----------
    name
        How error messages call the program.
    folder
        Working directory; None for that of this process.

    Raises
    ------
    EngineError
        It takes longer than `limit_s`.
    """
    try:
        return subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineError("engine-refused", f"{name} did not finish within {limit_s:g} s") from None


def run_converter(name: str, command: Sequence[str], output: Path, *, errors_first: bool) -> None:
    """Run a converter in the folder of `output`.

    Parameters
    ----------
    name
        How error messages call the converter: "mnn's converter".
    output
        File that it writes.
    errors_first
        Quote stderr rather than stdout if both hold messages.

    Raises
    ------
    EngineError
        The converter fails, writes no file, or takes longer than CONVERT_SECONDS.
    """
    # converters may leave intermediate files in the working directory, here a temporary one
    done = run_program(name, command, CONVERT_SECONDS, output.parent)
    # a converter may exit with 0 although it wrote nothing
    if done.returncode == 0 and output.is_file():
        return
    texts = [done.stderr.strip(), done.stdout.strip()]
    first, second = texts if errors_first else reversed(texts)
    message = first or second or f"exited with status {done.returncode}"
    # the last line is quoted: earlier ones are progress
    raise refusal(name, message.splitlines()[-1])
