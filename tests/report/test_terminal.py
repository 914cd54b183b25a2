"""Summary of a run as text: tables, figures, warnings."""

from __future__ import annotations

from pathlib import Path

from onnxprune.report.data import Report, Stage
from onnxprune.report.terminal import before_after, summary, warnings
from onnxprune.report.text import amount, duration


def test_numbers_have_three_digits_and_a_unit() -> None:
    assert [amount(v) for v in (0, 12, 999, 1000, 12345, 1.5e9)] == [
        "0",
        "12",
        "999",
        "1 k",
        "12.3 k",
        "1.5 G",
    ]
    assert amount(371432, "B") == "371 kB"
    assert [duration(s) for s in (5, 89, 120, 5400, 8000)] == [
        "5 s",
        "89 s",
        "2 min",
        "1 h 30 min",
        "2 h 13 min",
    ]


def test_table_has_all_measurements() -> None:
    report = Report(
        "a.onnx",
        "b.onnx",
        {"macs": 2000, "params": 10, "bytes": 40, "activation_bytes": 0},
        {"macs": 1000, "params": 4, "bytes": 16, "activation_bytes": 0},
        latency={
            "onnxruntime": {
                "before_ms": 2.0,
                "after_ms": 1.0,
                "speedup": 2.0,
                "low": 1.9,
                "high": 2.1,
            }
        },
        quality={"top1": {"before": 0.9, "after": 0.85, "standard_error": 0.01, "samples": 100}},
    )
    table = [line.split() for line in before_after(report).splitlines()]
    assert ["MACs", "2", "k", "1", "k", "50.0%"] in table and [
        "latency",
        "onnxruntime",
        "2",
        "ms",
        "1",
        "ms",
        "2.00x",
    ] in table
    assert ["top1", "0.9", "0.85", "-0.05"] in table


def test_summary_has_fidelity_and_paths() -> None:
    report = Report(
        "a",
        "b.onnx",
        {"macs": 2},
        {"macs": 1},
        fidelity={
            "samples": 5,
            "relative_error": 0.0213,
            "agreement": 0.8,
            "outputs": {"y": {"top1_agreement": 0.8}},
        },
        warnings=tuple("abcdefgh"),
        warning_topics=("inputs", *["alignment"] * 2, *["machine"] * 5),
    )
    said = summary(report, Path("b.run/report.html")).splitlines()
    assert said[-4:] == [
        "held-out inputs (5): relative output error 0.021, top-1 agreement 80.0%",
        "",
        "written to b.onnx",
        f"report: {Path('b.run/report.html')}",
    ]
    assert warnings(report).splitlines() == [f"warning: {w}" for w in "abcdefgh"]
    assert warnings(report, Path("p.html")).splitlines() == [
        "warning: a",
        "warning: b (and 1 more in p.html)",
        "warning: d (and 4 more in p.html)",
    ]
    # those that are on the screen already are not repeated
    assert warnings(report, Path("p.html"), shown={"a", "b", "d"}).splitlines() == [
        "warning: c",
        "warning: e (and 3 more in p.html)",
    ]
    assert warnings(report, shown=set("abcdefgh")) == ""


def test_written_report_reads_as_equal_report() -> None:
    report = Report(
        "a", "b", {"macs": 2}, {"macs": 1}, stages=(Stage("score", 1.0, True),), warnings=("w",)
    )
    assert Report.from_json(report.to_json()) == report
