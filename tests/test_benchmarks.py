"""The runner that benchmarks share, and that every benchmark starts."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import record, scaling
from benchmarks.runner import ORIGINAL, complete, format_values, markdown, quality_table, read_rows

ROOT = Path(__file__).resolve().parents[1]
# without a command line
LIBRARIES = ("benchmarks.decoders", "benchmarks.package_models", "benchmarks.runner")
MODULES = sorted(f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("[!_]*.py"))


@pytest.mark.parametrize("name", [m for m in MODULES if m not in LIBRARIES])
def test_benchmark_shows_its_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "benchmarks.tuning":
        pytest.importorskip("torch")
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    printed = capsys.readouterr().out
    assert end.value.code == 0
    assert module.__doc__.splitlines()[0] in printed and f"python -m {name}" in printed


def test_rows_of_the_file_are_not_measured_again(tmp_path: Path) -> None:
    path, measured = tmp_path / "rows.jsonl", []

    def measure(key: dict) -> dict:
        measured.append(key["model"])
        return {"value": len(measured)}

    keys = [{"model": "a"}, {"model": "b"}]
    complete(path, keys[:1], measure, str)
    rows = complete(path, keys, measure, str)
    assert measured == ["a", "b"]
    assert rows == read_rows(path) == [{"model": "a", "value": 1}, {"model": "b", "value": 2}]


def row(method: str, value: float, target: float = 0.5, seed: int = 0) -> dict:
    metric = {"value": value, "standard_error": 0.01, "n": 100}
    return {"model": "m", "target": target, "method": method, "seed": seed, "metric": metric}


def test_quality_table_has_a_line_per_target_and_marks_the_best() -> None:
    rows = [row(ORIGINAL, 0.9, 1.0), row("l2", 0.5), row("l2", 0.7, seed=1), row("random", 0.2)]
    rows.append(row("l2", 0.8, target=0.7))
    table = quality_table(rows, ["random", "l2", "unused"], mark_best=True)
    assert table.splitlines() == [
        "| model | MACs | original | random | l2 |",
        "| --- | --- | --- | --- | --- |",
        "| m | 70% | 0.9000 (se 0.0100, n 100) |  | **0.8000** |",
        "| m | 50% | 0.9000 (se 0.0100, n 100) | 0.2000 | **0.6000** ± 0.1000 |",
    ]


def test_values_are_formatted_with_half_their_range() -> None:
    assert format_values([]) == ""
    assert format_values([0.5]) == "0.5000"
    assert format_values([0.4, 0.6]) == "0.5000 ± 0.1000"


def test_markdown_table() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_record_reports_figures_that_are_slower_than_the_last(tmp_path: Path) -> None:
    def figures(value: float, spread: float = 0.02) -> dict:
        return {"median": value, "interval": [value - spread, value + spread]}

    last = {"date": "2026-01-02", "figures": {"a": figures(1.0), "b": figures(1.0)}}
    last["processor"] = "this"
    old = {"date": "2026-01-01", "processor": "this", "figures": {}}
    rows = [old, last, {"date": "2026-01-03", "processor": "other"}, {"date": "2026-01-04"}]
    for name, row in zip("zyxw", rows, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(row))
    assert record.read_last(tmp_path, "this") == last
    # another processor has other ratios between Python and convolutions
    assert record.read_last(tmp_path, "new") is None
    assert record.read_last(tmp_path / "none", "this") is None
    assert record.name_processor() == record.name_processor() != ""
    # within the limit; beyond it, but noisy; new
    present = {"figures": {"a": figures(1.1), "b": figures(1.2, 0.5), "c": figures(9.0)}}
    assert record.compare(present, last) == {}
    assert record.compare({"figures": {"a": figures(1.3)}}, last) == {"a": pytest.approx(1.3)}
    assert "| 1.10 |" in record.table({"figures": {"a": figures(1.1) | {"cpu_s": 2.0}}}, last)


def test_scaling_measures_stages_and_draws_them() -> None:
    rows = scaling.measure(1, {"samples": (32, 64), "analysis": (5, 10)})
    assert [(row["sweep"], row["value"]) for row in rows] == [
        ("samples", 32),
        ("samples", 64),
        ("analysis", 5),
        ("analysis", 10),
    ]
    assert {"analyze", "score", "repair"} <= set(rows[0]["stages"]) <= set(scaling.STAGES)
    assert math.isclose(sum(rows[0]["stages"].values()), rows[0]["total"], rel_tol=1e-6)
    assert all(row["total"] > 0 and row["peak_mb"] > 20 for row in rows)
    picture = ElementTree.fromstring(scaling.draw(rows))
    lines = [e for e in picture.iter() if e.tag.endswith("polyline")]
    assert all(len(line.attrib["points"].split()) == 2 for line in lines) and len(lines) >= 4
    assert len(scaling.table(rows).splitlines()) == 4


def test_exponent_of_growth() -> None:
    rows = [{"value": v, "total": 3 * v**2} for v in (1, 4, 8)]
    assert scaling.exponent(rows, "total") == pytest.approx(2)
    assert scaling.exponent([{"value": 1, "total": 0}, {"value": 2, "total": 1}], "total") is None


def test_documented_growth_is_that_of_the_recorded_runs() -> None:
    rows = json.loads((ROOT / "docs" / "scaling.json").read_text(encoding="utf-8"))["rows"]
    picture = (ROOT / "docs" / "pictures" / "scaling.svg").read_text(encoding="utf-8")
    assert scaling.draw(rows) == picture
    assert scaling.table(rows) in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
