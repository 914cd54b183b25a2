"""Comparison of the runs of one model: which ones, their figures, the Pareto front."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pages import HOSTILE, full

from onnxprune.cli import run
from onnxprune.report import html
from onnxprune.report.data import Report
from onnxprune.report.runs import JOURNAL, Run, compare, find_front, find_runs
from onnxprune.run import rundir


def report(macs: float, top1: float, speedup: float = 1.0, source: str = "a" * 64) -> Report:
    """Return a report with a few figures."""
    return Report(
        "a.onnx",
        "b.onnx",
        {"macs": 1000, "params": 100},
        {"macs": int(1000 * macs), "params": 50},
        quality={"top1": {"before": 0.9, "after": top1, "standard_error": 0.01, "samples": 100}},
        latency={"onnxruntime": {"before_ms": 2, "after_ms": 2 / speedup, "speedup": speedup}},
        splits={"report_labels": "100 labeled"},
        provenance={"source_sha256": source},
    )


def save(folder: Path, content: Report) -> Path:
    """Write a run directory with a report."""
    folder.mkdir()
    (folder / JOURNAL).write_text("")
    (folder / "report.json").write_text(json.dumps(content.to_json()))
    return folder


def test_runs_of_the_same_model_in_the_folder_are_found(tmp_path: Path) -> None:
    own = save(tmp_path / "own.run", report(0.5, 0.88))
    save(tmp_path / "b.run", report(0.6, 0.89))
    save(tmp_path / "a.run", report(0.7, 0.89))
    save(tmp_path / "foreign.run", report(0.7, 0.89, source="b" * 64))
    (save(tmp_path / "broken.run", report(0.7, 0.89)) / "report.json").write_text("{")
    (save(tmp_path / "empty.run", report(0.7, 0.89)) / "report.json").unlink()
    # another program changed a figure
    changed = {**report(0.7, 0.89).to_json(), "after": {"macs": "x"}}
    (save(tmp_path / "changed.run", report(0.7, 0.89)) / "report.json").write_text(
        json.dumps(changed)
    )
    # a folder with a report that is no run directory
    (save(tmp_path / "copy", report(0.7, 0.89)) / JOURNAL).unlink()
    assert [row.name for row in find_runs(own, report(0.5, 0.88))] == ["a.run", "b.run"]
    assert find_runs(own, replace(report(0.5, 0.88), provenance={})) == []
    assert JOURNAL == rundir.JOURNAL


def test_figures_are_those_of_the_reports_and_the_original_comes_first() -> None:
    other = replace(report(0.6, 0.85, 2.0), splits={"report_labels": "50 labeled"})
    comparison = compare(Run("own", report(0.5, 0.88, 1.25)), [Run("other", other)])
    assert comparison is not None and comparison.measure == "top1"
    rows = [(r.number, r.macs, r.params, r.time, r.quality, r.error) for r in comparison.lines]
    assert rows == [
        (0, 1.0, 1.0, 1.0, 0.9, None),
        (1, 0.5, 0.5, 0.8, 0.88, 0.01),
        (2, 0.6, 0.5, 0.5, 0.85, 0.01),
    ]
    assert [r.is_other_data for r in comparison.lines] == [False, False, True]
    assert len(comparison.plots) == 2 and compare(Run("own", report(0.5, 0.88)), []) is None


def test_runs_without_the_metric_are_compared_by_fidelity() -> None:
    bare = replace(report(0.5, 0.8), quality={}, fidelity={"samples": 9, "agreement": 0.9})
    comparison = compare(Run("own", bare), [Run("other", bare)])
    assert comparison is not None and comparison.measure == "agreement"
    assert [row.quality for row in comparison.lines] == [1.0, 0.9, 0.9]


def test_front_holds_what_no_other_point_beats() -> None:
    points = [(1.0, 0.9), (0.5, 0.8), (0.6, 0.7), (0.5, 0.75), (0.4, 0.8), (1.0, 0.95)]
    assert find_front(points, True) == [(0.4, 0.8), (1.0, 0.95)]
    # of an error, the smaller one is better
    assert find_front(points, False) == [(0.4, 0.8), (0.5, 0.75), (0.6, 0.7)]


def test_command_compares_runs_and_writes_the_page_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = save(tmp_path / "first.run", report(0.5, 0.88))
    second = save(tmp_path / "second.run", report(0.6, 0.89))
    assert run(["report", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == "MACs params time top1 error worst verdict".split()
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["original", "100.0%"],
        ["first.run", "50.0%"],
        ["second.run", "60.0%"],
    ]
    page = (first / "report.html").read_text(encoding="utf-8")
    assert "Runs of this model" in page and "second.run" in page
    assert run(["report", str(first), str(second), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["measure"] == "top1" and [row["macs"] for row in rows["runs"]] == [1.0, 0.5, 0.6]
    # the page of one run links to those next to it, which have a page
    assert run(["report", str(second)]) == 0
    assert 'href="./../first.run/report.html"' in (second / "report.html").read_text()
    capsys.readouterr()
    foreign = save(tmp_path / "foreign.run", report(0.6, 0.89, source="b" * 64))
    for arguments, code in (
        ([first, foreign], "report-models"),
        ([first, second, "--sensitivities", tmp_path], "report-sensitivities"),
    ):
        assert run(["report", *map(str, arguments)]) == 2
        assert f"error[{code}]" in capsys.readouterr().err


def test_names_of_runs_stay_text() -> None:
    text = html.page(full(3), HOSTILE, [Run(HOSTILE, full(3)), Run("b", full(3))])
    assert text.count("<script>") == 1 and "<img" not in text
