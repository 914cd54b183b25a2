"""Readers of the figures that run scripts and compilers write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxprune.errors import DataError
from onnxprune.files import read_text


def load_json(path: Path, what: str) -> dict[str, Any]:
    """Return a JSON object; DataError if the file is missing or holds something else."""
    try:
        value = json.loads(read_text(path, "replace"))
    except OSError as problem:
        raise DataError(
            "results-missing",
            f"{what} is missing ({path.name}: {problem.strerror}); check the output of run.py",
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise DataError("report-invalid", f"{path} is not valid JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise DataError("report-invalid", f"{path} holds no JSON object")
    return value


def numbers(report: dict[str, Any]) -> dict[str, float]:
    """Return the entries that are finite numbers."""
    return {
        name: float(value)
        for name, value in report.items()
        if isinstance(value, (int, float))
        # bool is an int; NaN fails the last comparison too
        and not isinstance(value, bool)
        and abs(value) < float("inf")
    }
