"""COCO's table of twelve figures in terminal, page and comparison."""

from __future__ import annotations

import math

from onnxprune.metrics.detection import TWELVE
from onnxprune.report import html
from onnxprune.report.coco_table import coco_table, coco_tables
from onnxprune.report.data import Costs, QualityRow, Report
from onnxprune.report.terminal import summary


def report() -> Report:
    details = {name: [0.5 + k / 100, 0.4 + k / 100] for k, name in enumerate(TWELVE)}
    details["ap_small"] = [None, None]
    rows = {"coco": QualityRow(0.5, 0.4, details=details), "top1": QualityRow(0.9, 0.8)}
    return Report("a.onnx", "b.onnx", Costs(100), Costs(50), quality=rows)


def test_terminal_page_and_json_have_the_twelve_figures():
    (table,) = coco_tables(report())
    lines = table.text().splitlines()
    titles = "coco AP AP50 AP75 AP S AP M AP L AR 1 AR 10 AR 100 AR S AR M AR L"
    assert lines[0].split() == titles.split()
    assert lines[1].split()[:5] == ["before", "0.500", "0.510", "0.520", "-"]
    assert lines[2].split()[-1] == "0.510"
    assert max(map(len, lines)) <= 100
    assert table.text() in summary(report())
    assert "COCO table of coco" in html.page(report())
    again = Report.from_json(report().to_json())
    assert again.quality["coco"].details["ar_1"] == [0.56, 0.46]
    assert "details" not in report().to_json()["quality"]["top1"]


def test_models_without_all_figures_have_no_table():
    known = dict.fromkeys(TWELVE, math.nan)
    assert coco_table("coco", {"A": known, "B": {"map": 0.5}}) is None
    assert set(coco_table("coco", {"A": known}).text().splitlines()[1].split()) == {"A", "-"}
