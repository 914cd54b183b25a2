"""Reading the figures that run scripts and compilers leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxprune.errors import DataError


def load_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object; DataError where the file is missing or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as problem:
        raise DataError(
            "results-missing",
            f"{what} is not there ({path.name}: {problem.strerror}); did run.py end well?",
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise DataError("report-invalid", f"{path} is not JSON: {problem}") from problem
    if not isinstance(found, dict):
        raise DataError("report-invalid", f"{path} holds no object")
    return found


def numbers(found: dict[str, Any]) -> dict[str, float]:
    """The entries that are numbers."""
    return {
        k: float(v)
        for k, v in found.items()
        if isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < float("inf")
    }
