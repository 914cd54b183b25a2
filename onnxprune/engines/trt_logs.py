"""Read times and layer profiles from trtexec's JSON logs (TensorRT 8 to 11)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import DataError


@dataclass(frozen=True)
class Times:
    """Latencies of single inferences in milliseconds.

    Attributes
    ----------
    latency_ms
        One per inference after the warm-up.
    period_ms
        Time from one start to the next.
    """

    latency_ms: np.ndarray
    period_ms: float


def parse_times(text: str, warm_up_ms: float = 0.0) -> Times:
    """Return the latencies in trtexec's exportTimes.

    Parameters
    ----------
    warm_up_ms
        Rows that start less than this after the first are dropped, unless that would drop all.

    Raises
    ------
    DataError
        The text is not such a file.
    """
    rows = _parse_rows(text, "exportTimes")
    try:
        starts = np.array([_read_start(row, index) for index, row in enumerate(rows)], float)
        compute = np.array([_read_compute(row) for row in rows], float)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as problem:
        raise DataError(
            "times-invalid",
            f"not trtexec's exportTimes: a row has no start or compute time ({problem})",
        ) from problem
    # JSON as Python reads it may hold NaN and Infinity
    if not (np.isfinite(starts).all() and np.isfinite(compute).all()):
        raise DataError("times-invalid", "not trtexec's exportTimes: a time is not finite")
    # exportTimes includes the warm-up
    warm = starts - starts[0] >= warm_up_ms
    if warm.any():
        starts, compute = starts[warm], compute[warm]
    # a single inference has no following start
    period = float(compute[0])
    if len(starts) > 1:
        period = float((starts[-1] - starts[0]) / (len(starts) - 1))
    return Times(compute, period if period > 0 else float(np.median(compute)))


def _read_start(row: Any, index: int) -> Any:
    """Return the start of an inference; names differ between versions."""
    # without a start, rows are at least in their order
    return row.get("startEnqMs", row.get("startInMs", row.get("startComputeMs", index)))


def _read_compute(row: Any) -> Any:
    """Return the time of an inference without copies."""
    if "computeMs" in row:
        return row["computeMs"]
    return row["latencyMs"] - row.get("inMs", 0.0) - row.get("outMs", 0.0)


def parse_profile(text: str) -> dict[str, float]:
    """Return layer -> mean milliseconds in trtexec's exportProfile; equal names are added.

    Raises
    ------
    DataError
        The text is not such a file.
    """
    rows = _parse_rows(text, "exportProfile")
    times: dict[str, float] = {}
    try:
        # the first row holds the number of inferences that the others are sums over
        count = float(rows[0].get("count", 1)) if isinstance(rows[0], dict) else 1.0
        for row in rows:
            if not isinstance(row, dict) or "name" not in row:
                continue
            name = str(row["name"])
            if "averageMs" in row:
                mean = float(row["averageMs"])
            else:
                mean = float(row.get("timeMs", 0.0)) / max(1.0, count)
            # TensorRT may give several layers the same name
            times[name] = times.get(name, 0.0) + mean
    except (TypeError, ValueError) as problem:
        raise DataError("profile-invalid", f"not trtexec's exportProfile: {problem}") from problem
    return times


def _parse_rows(text: str, kind: str) -> list[Any]:
    """Return a non-empty JSON list."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise DataError("log-invalid", f"not trtexec's {kind}: {problem}") from problem
    if not isinstance(rows, list) or not rows:
        raise DataError("log-invalid", f"not trtexec's {kind}: expected a list with rows")
    return rows
