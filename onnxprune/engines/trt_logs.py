"""Times and layer profiles read from trtexec's JSON logs (TensorRT 8 to 11)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import DataError


@dataclass(frozen=True)
class Times:
    """Latencies of single inferences, warm-up dropped, and the time from one start to the next (milliseconds)."""

    latency_ms: np.ndarray
    period_ms: float


def parse_times(text: str, warm_up_ms: float = 0.0) -> Times:
    """Latencies out of trtexec's exportTimes.

    Parameters
    ----------
    warm_up_ms
        Rows that start less than this after the first are dropped, unless that would leave none.

    Raises
    ------
    DataError
        Not such a file.
    """
    rows = _json_rows(text, "exportTimes")
    try:
        starts = np.array(
            [
                r.get("startEnqMs", r.get("startInMs", r.get("startComputeMs", i)))
                for i, r in enumerate(rows)
            ],
            float,
        )
        compute = np.array(
            [
                r["computeMs"]
                if "computeMs" in r
                else r["latencyMs"] - r.get("inMs", 0.0) - r.get("outMs", 0.0)
                for r in rows
            ],
            float,
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as problem:
        raise DataError(
            "times-invalid",
            f"not trtexec's exportTimes: a row without start or compute time ({problem})",
        ) from problem
    if not (np.isfinite(starts).all() and np.isfinite(compute).all()):
        raise DataError("times-invalid", "not trtexec's exportTimes: a time is not a number")
    warm = starts - starts[0] >= warm_up_ms
    if warm.any():
        starts, compute = starts[warm], compute[warm]
    period = (
        float((starts[-1] - starts[0]) / (len(starts) - 1))
        if len(starts) > 1
        else float(compute[0])
    )
    return Times(compute, period if period > 0 else float(np.median(compute)))


def parse_profile(text: str) -> dict[str, float]:
    """Layer -> mean milliseconds, out of trtexec's exportProfile; layers of one name are added."""
    rows = _json_rows(text, "exportProfile")
    found: dict[str, float] = {}
    try:
        count = float(rows[0].get("count", 1)) if isinstance(rows[0], dict) else 1.0
        for row in rows:
            if isinstance(row, dict) and "name" in row:
                mean = (
                    float(row["averageMs"])
                    if "averageMs" in row
                    else float(row.get("timeMs", 0.0)) / max(1.0, count)
                )
                found[str(row["name"])] = found.get(str(row["name"]), 0.0) + mean
    except (TypeError, ValueError) as problem:
        raise DataError("profile-invalid", f"not trtexec's exportProfile: {problem}") from problem
    return found


def _json_rows(text: str, kind: str) -> list[Any]:
    """A non-empty JSON list."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise DataError("log-invalid", f"not trtexec's {kind}: {problem}") from problem
    if not isinstance(rows, list) or not rows:
        raise DataError("log-invalid", f"not trtexec's {kind}: expected a list with rows")
    return rows
