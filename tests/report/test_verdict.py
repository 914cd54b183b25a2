"""Verdicts on cost, quality and speed: their levels, texts, and that all outputs say the same."""

from __future__ import annotations

import io
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from pages import full

from onnxprune.metrics.output_sums import OutputSums
from onnxprune.report import html, terminal
from onnxprune.report.cards import cards
from onnxprune.report.conclusions import DOUBT, NextStep, worst_level
from onnxprune.report.data import LatencyRow, QualityRow, Report, TargetRow
from onnxprune.report.verdict import judge

EMPTY = Report("a.onnx", "b.onnx", {"macs": 100}, {"macs": 50})


def level_and_text(report: Report, aspect: str) -> tuple[str, str]:
    verdict = next(row for row in judge(report) if row.aspect == aspect)
    return verdict.level, verdict.text


@pytest.mark.parametrize(
    ("reached", "level", "text"),
    [
        (50, "good", "target met: macs=50%; 50.0% of the MACs remain"),
        (60, "bad", "1 of 1 target missed: macs=50% (60 instead of 50); 50.0% of the MACs remain"),
    ],
)
def test_cost_is_bad_if_a_target_is_missed(reached: float, level: str, text: str) -> None:
    report = replace(EMPTY, targets=(TargetRow("macs=50%", 50, reached),))
    assert level_and_text(report, "cost") == (level, text)


@pytest.mark.parametrize(
    ("row", "level", "text"),
    [
        (QualityRow(0.9, 0.89, 0.01, 500, None, 0.006), "good", "within noise (-0.01 ± 0.006)"),
        (QualityRow(0.9, 0.846, 0.01, 500, None, 0.011), "fair", "lost 0.054 ± 0.011"),
        (QualityRow(0.9, 0.95, 0.01, 500, None, 0.011), "good", "gained 0.05 ± 0.011"),
        (QualityRow(0.9, 0.44, 0.01, 500, None, 0.011), "bad", "unusable"),
        # of independent samples, the difference has a larger error
        (QualityRow(0.9, 0.88, 0.01, 500), "good", "within noise (-0.02 ± 0.014)"),
        (QualityRow(0.9, 0.89, None, 500), "fair", "lost 0.01, without a standard error"),
        (QualityRow(1.0, 1.5, 0.1, 9, None, 0.1, False), "fair", "lost 0.5 ± 0.1"),
        (QualityRow(1.0, 2.5, 0.1, 9, None, 0.1, False), "bad", "unusable"),
        (QualityRow(0.9, float("nan"), 0.1, 9), "bad", "unusable"),
        # within so large a noise, most of the accuracy could be lost
        (QualityRow(0.9, 0.8, 0.13, 10, None, 0.1), "unknown", "too few labeled inputs to judge"),
        (QualityRow(0.5, 0.5, 0.09, 9, None, 0.1, False), "unknown", "too few labeled inputs"),
    ],
)
def test_metric_is_judged_by_the_error_of_its_change(
    row: QualityRow, level: str, text: str
) -> None:
    got = level_and_text(replace(EMPTY, quality={"top1": row}), "quality")
    assert got[0] == level and got[1].startswith(text)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("map50", 0.0, "neither model finds a labeled box"),
        ("coco", float("nan"), "no labeled input has a box"),
        ("top1", 0.0, "it is 0 for both models"),
    ],
)
def test_metric_without_anything_to_compare_says_nothing(
    name: str, value: float, reason: str
) -> None:
    report = replace(EMPTY, quality={name: QualityRow(value, value, 0.0, 16, None, 0.0)})
    level, text = level_and_text(report, "quality")
    assert level == "unknown"
    assert text.startswith(f"{name} says nothing, because {reason}: {name} {value:.4g} before")
    # a loss of everything, and an error of 0, are results
    lost = replace(EMPTY, quality={name: QualityRow(0.4, 0.0, 0.0, 16, None, 0.0)})
    assert level_and_text(lost, "quality")[0] == "bad"
    error = replace(EMPTY, quality={"rmse": QualityRow(0.0, 0.0, 0.0, 16, None, 0.0, False)})
    assert level_and_text(error, "quality")[0] == "good"


def test_outputs_without_any_box_are_not_judged() -> None:
    fidelity = {"samples": 16, "boxes": 0}
    verdict = level_and_text(replace(EMPTY, fidelity=fidelity), "quality")
    text = "not measured: neither model finds a box on 16 held-out inputs"
    assert verdict == ("unknown", text)
    # raw outputs of a decoder are compared as well
    verdict = level_and_text(
        replace(EMPTY, fidelity={**fidelity, "relative_error": 0.1}), "quality"
    )
    assert "error 0.1, no box of either model on 16 held-out inputs" in verdict[1]


@pytest.mark.parametrize(
    ("figures", "nmse", "level", "text"),
    [
        ({"agreement": 0.31}, None, "bad", "unusable: agreement with the original 31.0%"),
        ({"agreement": 0.9}, None, "fair", "changed: agreement"),
        ({"agreement": 0.98}, None, "good", "close to the original: agreement"),
        ({"relative_error": 0.3}, 0.01, "good", "close to the original: relative output error"),
        ({"relative_error": 0.3}, 0.2, "fair", "changed"),
        ({"relative_error": 0.3}, 0.9, "bad", "unusable"),
        ({"relative_error": 1.2}, None, "bad", "unusable"),
        ({}, None, "unknown", "not measured"),
    ],
)
def test_outputs_are_judged_without_labels(
    figures: dict[str, float], nmse: float | None, level: str, text: str
) -> None:
    fidelity = {"samples": 51, **figures, "outputs": {"y": {"nmse": nmse}} if figures else {}}
    got = level_and_text(replace(EMPTY, fidelity=fidelity if figures else {}), "quality")
    assert got[0] == level and got[1].startswith(text)


@pytest.mark.parametrize(
    ("errors", "level", "text"),
    [
        ({"a": 2.8, "b": 0.1}, "bad", "unusable: relative output error 2.8"),
        ({"a": 0.1, "b": 0.5}, "fair", "changed"),
        ({"a": 0.1, "b": 0.2}, "good", "close to the original"),
        ({"a": 0.1, "b": None}, "good", "close to the original"),
    ],
)
def test_joined_outputs_are_judged_by_their_heads(
    errors: dict[str, float | None], level: str, text: str
) -> None:
    """A constant of all heads makes the variance of the output large, and its error small."""
    heads = {name: {"output": "y", "relative_error": error} for name, error in errors.items()}
    worst = max(error for error in errors.values() if error is not None)
    outputs = {"y": {"nmse": 0.01, "relative_error": 0.02}}
    fidelity = {"samples": 51, "relative_error": worst, "outputs": outputs, "heads": heads}
    got = level_and_text(replace(EMPTY, fidelity=fidelity), "quality")
    assert got[0] == level and got[1].startswith(text)
    # another output counts by itself
    fidelity["outputs"] = {**outputs, "z": {"nmse": 0.9, "relative_error": 0.9}}
    assert level_and_text(replace(EMPTY, fidelity=fidelity), "quality")[0] == "bad"


@pytest.mark.parametrize(
    ("figures", "interval"),
    [
        # by scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
        ({"samples": 8, "agreement": 1.0}, (0.6756, 1.0)),
        ({"samples": 51, "agreement": 1.0}, (0.9300, 1.0)),
        ({"samples": 51, "agreement": 0.0}, (0.0, 0.0700)),
        ({"samples": 200, "agreement": 0.97}, (0.9361, 0.9862)),
        # pixels: the standard error says as how many answers they count
        ({"samples": 8, "agreement": 0.99, "error": 0.002}, (0.98519, 0.99325)),
    ],
)
def test_agreement_has_an_interval_that_is_honest_for_few_inputs(
    figures: dict[str, float], interval: tuple[float, float]
) -> None:
    outputs = {"y": {"agreement_error": figures.get("error", 0.0)}}
    report = replace(EMPTY, fidelity={**figures, "outputs": outputs})
    low, high = interval
    text = f"{figures['agreement']:.1%} ({low:.1%} to {high:.1%})"
    assert text in level_and_text(report, "quality")[1]


@pytest.mark.parametrize(
    ("figures", "row"),
    [
        ({"samples": 8, "agreement": 1.0}, {"agreement_error": 0.0}),
        ({"samples": 20, "agreement": 1.0}, {"agreement_error": 0.0}),
        ({"samples": 3, "relative_error": 0.1}, {"nmse": 0.01, "relative_error_error": 0.001}),
        ({"samples": 9, "relative_error": 0.2}, {"nmse": 0.04, "relative_error_error": 0.1}),
    ],
)
def test_few_inputs_settle_no_good_quality(
    figures: dict[str, float], row: dict[str, float]
) -> None:
    report = replace(EMPTY, fidelity={**figures, "outputs": {"y": row}})
    level, text = level_and_text(report, "quality")
    assert level == "unknown" and text.startswith("too few inputs to judge")
    assert "close to the original on these" in text


@pytest.mark.parametrize(
    ("row", "level", "text"),
    [
        (LatencyRow(2, 1, 2.0, 1.9, 2.1), "good", "2.00 times as fast (1.90 to 2.10) on cpu"),
        (LatencyRow(2, 2, 1.02, 0.97, 1.05), "fair", "no measurable gain: 1.02"),
        (LatencyRow(2, 3, 0.7, 0.6, 0.8), "bad", "slower: 0.70"),
        (LatencyRow(2, 2, 1.02), "fair", "no measurable gain: 1.02"),
    ],
)
def test_speed_gain_needs_an_interval_without_one(row: LatencyRow, level: str, text: str) -> None:
    got = level_and_text(replace(EMPTY, latency={"cpu": row}), "speed")
    assert got[0] == level and got[1].startswith(text)


def test_speed_says_on_how_many_threads() -> None:
    for threads, text in ((1, "on cpu, 1 thread"), (4, "on cpu, 4 threads"), (None, "on cpu")):
        report = replace(EMPTY, latency={"cpu": LatencyRow(2, 1, 2.0, 1.9, 2.1, threads=threads)})
        assert level_and_text(report, "speed")[1].endswith(text)
        assert cards(report)[2].unit == text and f"{text}." in html.headline(report)


def test_nothing_measured_on_inputs_in_doubt_is_good() -> None:
    fidelity = {"samples": 51, "agreement": 1.0, "relative_error": 0.0004}
    fine = Report("a.onnx", "b.onnx", {"macs": 2}, {"macs": 1}, fidelity=fidelity)
    doubted = replace(fine, warnings=("w",), warning_topics=(DOUBT,))
    before, after = (judge(report)[1] for report in (fine, doubted))
    assert (before.level, after.level) == ("good", "fair")
    assert after.text.startswith("in doubt, because inputs or labels look wrong")
    assert after.text.endswith(before.text) and cards(doubted)[1].word == "! in doubt"


@pytest.mark.parametrize(("agreement", "level"), [(0.9, "fair"), (0.1, "bad")])
def test_a_loss_on_inputs_in_doubt_is_doubted_as_well(agreement: float, level: str) -> None:
    fidelity = {"samples": 51, "agreement": agreement}
    report = replace(EMPTY, fidelity=fidelity, warnings=("w",), warning_topics=(DOUBT,))
    verdict = judge(report)[1]
    assert verdict.level == level and verdict.text.startswith("in doubt, because inputs")


def test_worst_level_of_verdicts() -> None:
    assert worst_level(["good", "fair", "unknown"]) == "fair"
    assert worst_level([]) == "unknown"


def test_terminal_json_and_page_say_the_same() -> None:
    report = full()
    steps = (NextStep("remove less", "onnxprune optimize 'a b.onnx' --target macs=75%"),)
    report = replace(report, verdicts=judge(report), next_steps=steps)
    page, summary = unescape(html.page(report)), terminal.summary(report)
    for row in report.to_json()["verdicts"]:
        assert row["text"] in page and row["text"] in summary
    assert summary.endswith("What next:\n  # remove less\n  " + steps[0].command)
    assert steps[0].command in page
    # a report of an earlier version has no verdicts: they follow from its figures
    assert terminal.verdicts(replace(report, verdicts=())) == terminal.verdicts(report)


def test_page_has_the_color_of_the_worst_verdict() -> None:
    page = html.page(replace(EMPTY, latency={"cpu": LatencyRow(2, 3, 0.7, 0.6, 0.8)}))
    assert '<div class="verdicts bad"' in page


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_verdicts_have_colors_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for stream, colors in ((Terminal(), 1), (io.StringIO(), 0)):
        report = replace(EMPTY, targets=(TargetRow("macs=50%", 50, 50),))
        terminal.write_summary(report, None, stream)
        assert stream.getvalue().count("\x1b[32mcost") == colors
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    terminal.write_summary(EMPTY, None, stream)
    assert stream.getvalue() == terminal.summary(EMPTY) + "\n"


def test_standard_errors_of_fidelity_match_the_spread_over_data_sets() -> None:
    rng = np.random.default_rng(0)
    results = []
    for _ in range(300):
        a = rng.normal(size=(60, 5)) * rng.uniform(0.2, 2, (60, 1))
        b = a + rng.normal(size=a.shape) * 0.5
        sums = OutputSums("y", a, None)
        for part in (slice(0, 32), slice(32, 60)):
            sums.update(a[part], b[part])
        results.append(sums.result())
    for value, error in (
        ("relative_error", "relative_error_error"),
        ("top1_agreement", "agreement_error"),
    ):
        spread = np.std([getattr(r, value) for r in results])
        mean = np.mean([getattr(r, error) for r in results])
        assert abs(mean / spread - 1) < 0.15  # 300 draws give a spread to 4 %
