"""Verdicts on cost, quality and speed, which terminal, JSON and page show alike."""

from __future__ import annotations

from collections.abc import Iterator
from math import hypot, isfinite, isnan, sqrt
from typing import Any

from onnxprune.errors import plural
from onnxprune.metrics.detection import BOX_METRICS
from onnxprune.report.conclusions import BAD, DOUBT, FAIR, GOOD, UNKNOWN, Verdict, worst_level
from onnxprune.report.data import (
    FidelitySummary,
    Figures,
    LatencyRow,
    MetricFigure,
    QualityRow,
    Report,
    TargetRow,
)
from onnxprune.report.text import amount

MISSED = 1.05  # a target counts as missed above this: two latency measurements differ by as much
NOISE = 2.0  # standard errors: a larger change occurs by chance in one case of twenty
# Share of the original's metric, agreement or explained variance below which a model is unusable.
USABLE = 0.5
# Agreement without a metric: with fewer equal answers, models of the zoo lost more than two points.
FAITHFUL = 0.95
FAITHFUL_ERROR = 0.05  # variance not explained, the same for outputs without classes
# A good verdict needs inputs enough to exclude less than this share: 22 of equal answers
SETTLED = 0.85
LEAST_INPUTS = 5  # a standard error of fewer may be far too small
Z_95 = 1.96  # quantile of the normal distribution, of an interval of 95 %


def judge(report: Report) -> tuple[Verdict, ...]:
    """Return the verdicts of a report, or judge its figures if it has none."""
    # stored verdicts stay as they were when the run ended, also if the limits change
    return tuple(report.verdicts) or (
        _judge_cost(report),
        _judge_quality(report),
        _judge_speed(report),
    )


def is_missed(row: TargetRow) -> bool:
    """Return whether a target is missed by more than the noise of a measurement."""
    return row.reached > row.allowed * MISSED


def _judge_cost(report: Report) -> Verdict:
    """Judge whether the targets are met."""
    before, after = report.before.macs, report.after.macs
    share = f"{after / before:.1%} of the MACs remain" if before else "no MACs to remove"
    missed = [row for row in report.targets if is_missed(row)]
    if missed:
        rows = [
            f"{row.target} ({amount(row.reached)} instead of {amount(row.allowed)})"
            for row in missed
        ]
        count = f"{len(missed)} of {plural(len(report.targets), 'target')}"
        return Verdict("cost", BAD, f"{count} missed: {', '.join(rows)}; {share}")
    if not report.targets:
        return Verdict("cost", GOOD, f"no target; {share}")
    word = "target" if len(report.targets) == 1 else "all targets"
    names = ", ".join(row.target for row in report.targets)
    return Verdict("cost", GOOD, f"{word} met: {names}; {share}")


def _judge_quality(report: Report) -> Verdict:
    """Judge the metrics or outputs; nothing is good, and all is doubted, on inputs in doubt."""
    verdict = _judge_figures(report)
    if verdict.level == UNKNOWN or DOUBT not in report.warning_topics:
        return verdict
    text = f"in doubt, because inputs or labels look wrong (see the warnings): {verdict.text}"
    return Verdict("quality", FAIR if verdict.level == GOOD else verdict.level, text)


def _judge_figures(report: Report) -> Verdict:
    """Judge the metrics, or without any the outputs on the held-out inputs."""
    if not report.quality:
        return _judge_fidelity(report)
    rows = [_judge_metric(name, row) for name, row in report.quality.items()]
    level = worst_level(level for level, _ in rows)
    return Verdict("quality", level, "; ".join(text for _, text in rows))


def _judge_metric(name: str, row: QualityRow) -> tuple[str, str]:
    """Return level and text of one metric."""
    figures = f"{name} {row.before:.4g} before, {row.after:.4g} after"
    if row.samples:
        figures += f", {plural(row.samples, 'labeled input')}"
    if silence := _explain_silence(name, row):
        return UNKNOWN, f"{name} says nothing, because {silence}: {figures}"
    # NaN fails every comparison below and could be judged as a gain
    if not (isfinite(row.before) and isfinite(row.after)):
        return BAD, f"unusable: {figures}"
    lost = row.before - row.after if row.higher_is_better else row.after - row.before
    # of an error, such as a distance, the larger value is the worse one
    factors = (row.after, row.before) if row.higher_is_better else (row.before, row.after)
    if factors[0] < USABLE * factors[1]:
        return BAD, f"unusable: {figures}"
    error = change_error(row)
    if error is None:
        if lost <= 0:
            return GOOD, f"not worse: {figures}; no standard error"
        return FAIR, f"lost {lost:.3g}, without a standard error: {figures}"
    if abs(lost) <= NOISE * error:
        # within a noise that large, a model could have lost a lot
        if not _excludes_loss(row, lost + NOISE * error):
            noise = f"change {-lost:+.2g} ± {error:.2g}"
            return UNKNOWN, f"too few labeled inputs to judge ({noise}): {figures}"
        return GOOD, f"within noise ({-lost:+.2g} ± {error:.2g}): {figures}"
    word = "lost" if lost > 0 else "gained"
    return (FAIR if lost > 0 else GOOD), f"{word} {abs(lost):.2g} ± {error:.2g}: {figures}"


def _excludes_loss(row: QualityRow, loss: float) -> bool:
    """Return whether a metric that is worse by `loss` would still be close to the original's."""
    if row.higher_is_better:
        return row.before - loss >= SETTLED * row.before
    return SETTLED * (row.before + loss) <= row.before


def _explain_silence(name: str, row: QualityRow) -> str:
    """Return why a metric cannot tell the models apart, "" if it can."""
    if name in BOX_METRICS and isnan(row.before) and isnan(row.after):
        return "no labeled input has a box"
    # of an error, 0 is the best value
    if not row.higher_is_better or row.before or row.after:
        return ""
    return "neither model finds a labeled box" if name in BOX_METRICS else "it is 0 for both models"


def change_error(row: QualityRow) -> float | None:
    """Return the standard error of a metric's change.

    Without that of the paired difference, it is that of two independent samples, which is larger.
    """
    if row.difference_error is not None:
        return row.difference_error
    return None if row.standard_error is None else hypot(row.standard_error, row.standard_error)


def _judge_fidelity(report: Report) -> Verdict:
    """Judge the outputs on held-out inputs."""
    fidelity = report.fidelity
    inputs = f"on {plural(fidelity.samples or 0, 'held-out input')}"
    if fidelity.agreement is None and fidelity.relative_error is None:
        text = "not measured: no labeled and no held-out inputs"
        if fidelity.boxes == 0:
            text = f"not measured: neither model finds a box {inputs}"
        return Verdict("quality", UNKNOWN, text)
    parts = []
    if fidelity.agreement is not None:
        low, high = _bound_agreement(report, fidelity.agreement)
        figure = f"{fidelity.agreement:.1%} ({low:.1%} to {high:.1%})"
        parts.append(f"{agreement_name(fidelity)} with the original {figure}")
    if fidelity.relative_error is not None:
        error = _find_largest(report, "relative_error_error")
        parts.append(f"relative output error {fidelity.relative_error:.2g}{_spell_error(error)}")
    if fidelity.boxes == 0:
        parts.append("no box of either model")
    level, word = _grade_fidelity(report)
    return Verdict("quality", level, f"{word}: {', '.join(parts)} {inputs}, no labels")


def agreement_name(fidelity: FidelitySummary) -> str:
    """Return the name of the measure that `fidelity.agreement` is."""
    if fidelity.box_agreement is not None:
        return "box agreement"
    outputs = fidelity.outputs.values()
    for key, name in (("top1_agreement", "top-1"), ("location_agreement", "location")):
        if any(row.get(key) is not None for row in outputs):
            return f"{name} agreement"
    return "agreement"


def _bound_agreement(report: Report, agreement: float) -> tuple[float, float]:
    """Return the interval of 95 % of the agreement (Wilson 1927).

    Unlike a standard error, it is not 0 where all answers are equal. Answers of one input, such as
    its pixels, count as as many as their standard error says, and at least as one.
    """
    number = float(max(report.fidelity.samples or 0, 1))
    error = _find_largest(report, "agreement_error")
    if error and isfinite(error):
        number = max(number, agreement * (1 - agreement) / error**2)
    squared = Z_95**2 / number
    center = (agreement + squared / 2) / (1 + squared)
    half = sqrt(max(agreement * (1 - agreement), 0) * squared + squared**2 / 4) / (1 + squared)
    # rounding may leave a share of 1 outside
    return min(max(center - half, 0.0), agreement), max(min(center + half, 1.0), agreement)


def _grade_fidelity(report: Report) -> tuple[str, str]:
    """Return level and word of the outputs: by agreement, else by explained variance."""
    agreement = report.fidelity.agreement
    if agreement is not None:
        kept, faithful = agreement, FAITHFUL
        least, _ = _bound_agreement(report, agreement)
    else:
        relative = report.fidelity.relative_error or 0.0
        unexplained = _find_unexplained(report.fidelity)
        kept, faithful = 1 - unexplained, 1 - FAITHFUL_ERROR
        error = _find_largest(report, "relative_error_error") or 0.0
        least = 1 - unexplained * (1 + NOISE * error / (relative or 1.0)) ** 2
    # negated, so that NaN is unusable too
    if not kept >= USABLE:
        return BAD, "unusable"
    if kept < faithful:
        return FAIR, "changed"
    samples = report.fidelity.samples
    if least < SETTLED or (samples is not None and samples < LEAST_INPUTS):
        return UNKNOWN, "too few inputs to judge, close to the original on these"
    return GOOD, "close to the original"


def _find_unexplained(fidelity: FidelitySummary) -> float:
    """Return the largest share of variance that an output loses, or its heads where it has some.

    Constants and positions make up most of the variance of an output that joins several heads.
    """
    heads = (fidelity.heads or {}).values()
    split = {head.get("output") for head in heads}
    shares = [row.get("nmse") for name, row in fidelity.outputs.items() if name not in split]
    errors = [head.get("relative_error") for head in heads]
    # the error of a head is relative to its own variation
    shares += [error if error is None else error**2 for error in errors]
    known = [share for share in shares if share is not None]
    # without a share, the square of the relative error estimates it
    return max(known) if known else (fidelity.relative_error or 0.0) ** 2


def _find_largest(report: Report, figure: str) -> float | None:
    """Return the largest of a figure of the outputs and heads, None if none has it."""
    fidelity = report.fidelity
    rows = [*fidelity.outputs.values(), *(fidelity.heads or {}).values()]
    values: list[Any] = [row.get(figure) for row in rows]
    return max((value for value in values if value is not None), default=None)


def _spell_error(error: float | None) -> str:
    """Return " ± error", "" without one."""
    return "" if error is None else f" ± {error:.1g}"


def _judge_speed(report: Report) -> Verdict:
    """Judge the latencies: a gain counts if its interval does not hold 1."""
    if not report.latency:
        return Verdict("speed", UNKNOWN, "not measured")
    rows = list(_judge_latencies(report))
    level = worst_level(level for level, _ in rows)
    return Verdict("speed", level, "; ".join(text for _, text in rows))


def _judge_latencies(report: Report) -> Iterator[tuple[str, str]]:
    """Yield level and text per engine."""
    for engine, row in report.latency.items():
        level, word = _grade_latency(row)
        figures = f"{row.speedup:.2f} times as fast"
        if row.low is not None and row.high is not None:
            figures += f" ({row.low:.2f} to {row.high:.2f})"
        yield level, f"{word}{figures} on {name_engine(engine, row)}"


def name_engine(engine: str, row: LatencyRow) -> str:
    """Return an engine with its number of threads, without which a time says little."""
    if row.threads is None:
        return engine
    return f"{engine}, {plural(row.threads, 'thread')}"


def _grade_latency(row: LatencyRow) -> tuple[str, str]:
    """Return level and word of one latency."""
    # without an interval, the speed-up is compared with the noise of two measurements
    low = row.low if row.low is not None else row.speedup / MISSED
    high = row.high if row.high is not None else row.speedup * MISSED
    if low <= 1 <= high:
        return FAIR, "no measurable gain: "
    return (BAD, "slower: ") if high < 1 else (GOOD, "")


def own_figures(report: Report) -> Figures:
    """Return the figures of the written model."""
    metrics = {
        name: MetricFigure(row.after, row.standard_error) for name, row in report.quality.items()
    }
    return Figures(report.fidelity.relative_error, report.fidelity.agreement, metrics)
