"""Cards of the verdicts: each with its level in a word, and the figure that it judges."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from onnxprune.report.conclusions import BAD, DOUBT, FAIR, GOOD, UNKNOWN, Verdict
from onnxprune.report.data import Report
from onnxprune.report.verdict import agreement_name, judge, name_engine

# beside the color, which not everyone sees
_WORDS = {
    "cost": {GOOD: "✓ met", FAIR: "! met in part", BAD: "✗ missed", UNKNOWN: "? not counted"},
    "quality": {GOOD: "✓ good", FAIR: "! changed", BAD: "✗ unusable", UNKNOWN: "? not judged"},
    "speed": {
        GOOD: "✓ faster",
        FAIR: "! no clear gain",
        BAD: "✗ slower",
        UNKNOWN: "? not measured",
    },
}


@dataclass(frozen=True)
class Card:
    """A verdict with its level in a word and its figure, "–" if it was not measured."""

    aspect: str
    level: str
    word: str
    value: str
    unit: str
    text: str


def cards(report: Report) -> list[Card]:
    """Return a card per verdict."""
    rows = []
    for verdict in judge(report):
        value, unit = _find_figure(report, verdict)
        # a report from a file may have other aspects and levels
        word = _WORDS.get(verdict.aspect, {}).get(verdict.level, verdict.level)
        if verdict.aspect == "quality" and verdict.level == FAIR and DOUBT in report.warning_topics:
            word = "! in doubt"
        rows.append(Card(verdict.aspect, verdict.level, word, value, unit, verdict.text))
    return rows


def _find_figure(report: Report, verdict: Verdict) -> tuple[str, str]:
    """Return the figure that a verdict judges, and its unit."""
    if verdict.aspect == "cost" and report.before.macs:
        return f"{report.after.macs / report.before.macs:.1%}", "of the MACs"
    if verdict.aspect == "quality" and report.quality:
        metric, row = next(iter(report.quality.items()))
        return f"{_spell(row.before)} → {_spell(row.after)}", metric
    fidelity = report.fidelity
    if verdict.aspect == "quality" and fidelity.agreement is not None:
        return f"{fidelity.agreement:.1%}", agreement_name(fidelity)
    if verdict.aspect == "quality" and fidelity.relative_error is not None:
        return f"{fidelity.relative_error:.2g}", "relative output error"
    if verdict.aspect == "speed" and report.latency:
        engine, latency = next(iter(report.latency.items()))
        return f"{latency.speedup:.2f}×", f"on {name_engine(engine, latency)}"
    return "–", ""


def _spell(value: float) -> str:
    """Return a metric with three digits after the point if it is a share."""
    if not isfinite(value):
        return str(value)
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:.4g}"
