"""Distributions of latencies as plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from markupsafe import Markup

from onnxprune.report.data import LatencyRow, Report
from onnxprune.report.plots import AFTER, BEFORE, Axis, Canvas, percent
from onnxprune.report.text import clip

BINS = 48
MOST_ENGINES = 6
# the plot ends at so many interquartile ranges above the third quartile, and at least at this
# share above the median: outliers, such as an interrupt, would leave the rest in one bin
_RANGES, _LEAST = 4.0, 0.1
_SIZE = (560, 260)


@dataclass(frozen=True)
class Distribution:
    """Histogram of one engine's inferences with the medians of both models.

    Attributes
    ----------
    beyond
        Inferences that took longer than the plot shows, as a share of both models'.
    """

    engine: str
    row: LatencyRow
    svg: Markup
    beyond: float


def distributions(report: Report) -> list[Distribution]:
    """Return a histogram per engine whose times are known."""
    rows = []
    for engine, row in list(report.latency.items())[:MOST_ENGINES]:
        times = [sorted(map(float, part)) for part in (row.before_times, row.after_times)]
        # a computed latency has one value only
        if all(len(set(part)) > 1 and all(map(isfinite, part)) for part in times):
            rows.append(_draw(engine, row, times))
    return rows


def _draw(engine: str, row: LatencyRow, times: Sequence[Sequence[float]]) -> Distribution:
    """Return the histogram of sorted times before and after."""
    low, high = min(part[0] for part in times), max(map(_find_end, times))
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = max(0.0, low - margin), high + margin
    shares = [_count(part, low, high) for part in times]
    tallest = max(max(part) for part in shares) or 1.0
    canvas = Canvas(
        Axis(low, high, "milliseconds per inference"),
        Axis(0.0, tallest * 1.1, "share of inferences", percent),
        _SIZE,
    )
    width = (high - low) / BINS
    for part, color in zip(shares, (BEFORE, AFTER), strict=True):
        for i, share in enumerate(part):
            if share:
                canvas.bar((low + i * width, low + (i + 1) * width), share, color)
    for value, color in ((row.before_ms, BEFORE), (row.after_ms, AFTER)):
        if low <= value <= high:
            canvas.line([(value, 0.0), (value, tallest * 1.1)], color, "5 3")
    label = (
        f"latency on {clip(engine, 40)}: median {row.before_ms:.3g} ms before, "
        f"{row.after_ms:.3g} ms after"
    )
    count = sum(len(part) for part in times)
    beyond = sum(value > high for part in times for value in part) / count
    return Distribution(engine, row, Markup(canvas.svg(label)), beyond)


def _find_end(times: Sequence[float]) -> float:
    """Return the longest of some sorted times that the plot shows."""
    first, middle, third = (times[round(q * (len(times) - 1))] for q in (0.25, 0.5, 0.75))
    return min(times[-1], max(third + _RANGES * (third - first), middle * (1 + _LEAST)))


def _count(times: Sequence[float], low: float, high: float) -> list[float]:
    """Return the share of the times in each bin."""
    counts = [0.0] * BINS
    for value in times:
        place = int((value - low) / (high - low) * BINS)
        if 0 <= place < BINS:
            counts[place] += 1 / len(times)
    return counts
