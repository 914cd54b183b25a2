"""Results have short reprs, a text and a table for notebooks."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune import demo
from onnxprune.data.dataset import open_data
from onnxprune.summary import MOST_ROWS


@pytest.fixture(scope="module")
def result() -> onnxprune.Result:
    return onnxprune.optimize(
        demo.files().model, data=demo.files().calibration, samples=32, fast=True, engine="none"
    )


@pytest.mark.parametrize("name", ["result", "report", "plan", "model", "analysis", "data"])
def test_texts_are_short_and_name_the_figures(result: onnxprune.Result, name: str) -> None:
    shown: Any = {
        "result": result,
        "report": result.report,
        "plan": result.plan,
        "model": result.model,
        "analysis": onnxprune.analyze(result.model),
        "data": open_data(np.zeros((5, 2), np.float32), {"x": (["b", 2], "tensor(float)")}),
    }[name]
    text, page = shown.summary(), shown._repr_html_()
    assert re.fullmatch(r"<\w+: [^\n]{5,200}>", repr(shown))
    assert text.splitlines()[0] == repr(shown)[1:-1]
    # the same cells in both forms
    for cell in re.findall(r"<td>([^<]+)</td>", page):
        assert cell.replace("&gt;", ">") in text
    assert page.count("<tr>") == len(text.splitlines()) - 1


def test_the_summary_has_the_costs(result: onnxprune.Result) -> None:
    text = result.summary()
    assert f"{result.report.after.macs / 1e6:.3g} M" in text and "agreement" in text
    assert result.plan.summary().count("\n") == len(result.plan.kept) + 1


def test_long_tables_are_cut_and_names_are_escaped() -> None:
    names = [f"g{i}" for i in range(MOST_ROWS + 5)] + ["<b>\n"]
    plan = onnxprune.Plan("", dict.fromkeys(names, (0,)), dict.fromkeys(names, 2))
    assert plan.summary().splitlines()[-1] == "and 6 more"
    first = onnxprune.Plan("", {"<b>\n": (0,)}, {"<b>\n": 2})
    assert "&lt;b&gt;\\n" in first._repr_html_() and "<b>\\n" in first.summary()
