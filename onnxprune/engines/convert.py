"""Run the converter program of an engine."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from onnxprune.engines.base import refusal
from onnxprune.errors import EngineError

CONVERT_SECONDS = 300


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
    try:
        done = subprocess.run(
            command,
            # converters may leave intermediate files in the working directory, here a temporary one
            cwd=output.parent,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CONVERT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineError(
            "engine-refused", f"{name} did not finish within {CONVERT_SECONDS} s"
        ) from None
    # a converter may exit with 0 although it wrote nothing
    if done.returncode == 0 and output.is_file():
        return
    texts = [done.stderr.strip(), done.stdout.strip()]
    first, second = texts if errors_first else reversed(texts)
    message = first or second or f"exited with status {done.returncode}"
    # the last line is quoted: earlier ones are progress
    raise refusal(name, message.splitlines()[-1])
