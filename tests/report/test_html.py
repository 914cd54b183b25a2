"""The report page: content, order of sections, escaping of names."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from pages import HOSTILE, full

from onnxprune.cli import run
from onnxprune.errors import OutputError, UsageError
from onnxprune.report import html
from onnxprune.report.data import Report
from onnxprune.report.picture import layout
from onnxprune.report.plots import Curve, plot

VOID = {"meta", "link", "br", "img", "input", "hr"}
HEADINGS = [
    "result",
    "trust",
    "warnings",
    "tradeoff",
    "cut",
    "time",
    "frozen",
    "sensitivity",
    "classes",
    "again",
]
LIMIT = 1_000_000


class Reader(HTMLParser):
    """Elements in order with their attributes and text; fails where end tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag}: an attribute twice"
        self.seen.append((tag, dict(attrs), [*self.open]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs), [*self.open]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs, _ in self.seen if name == tag]


def bare() -> Report:
    """The least that a report can say."""
    return Report("", "", {"macs": 100}, {"macs": 50})


def test_page_depends_on_json_only(tmp_path: Path) -> None:
    report = full()
    again = Report.from_json(json.loads(json.dumps(report.to_json())))
    assert (
        html.page(report)
        == html.page(again)
        == html.write(again, tmp_path).read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("groups", [120, 1500])
def test_page_is_small(groups: int) -> None:
    assert (
        len(html.page(full(groups, "/model/layer/block/attention/projection/MatMul" * 2)).encode())
        < LIMIT
    )


@pytest.mark.parametrize(
    "report", [bare(), full(), full(name=HOSTILE)], ids=["bare", "full", "hostile"]
)
def test_elements_match_and_sections_come_in_order(report: Report) -> None:
    page = Reader(html.page(report))
    ids = [
        attrs["id"] for _, attrs, inside in page.seen if attrs.get("id") and "table" not in inside
    ]
    assert [i for i in ids if i in HEADINGS] == HEADINGS and len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _, _ in page.seen if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == len(page.all("thead"))
    assert {attrs["href"][1:] for attrs in page.all("a") if attrs["href"]} <= set(ids)
    assert {attrs["aria-labelledby"] for attrs in page.all("section")} < set(ids)


def test_hostile_names_stay_text() -> None:
    page = Reader(html.page(full(name=HOSTILE)))
    assert len(page.all("script")) == 1 and not page.all("img") and len(page.all("title")) > 1
    assert not [name for _, attrs, _ in page.seen for name in attrs if name.startswith("on")]
    assert (
        "49" not in re.findall(r"<title>(.*?): onnxprune report", html.page(full(name=HOSTILE)))[0]
    )


def test_page_loads_nothing() -> None:
    text = html.page(full())
    assert not re.search(
        r"https?:|[\"(=]//|@import|url\(", text.replace("http://www.w3.org/2000/svg", "")
    )
    assert {name for _, attrs, _ in Reader(text).seen for name in attrs} & {
        "src",
        "srcset",
        "action",
        "data",
    } == set()
    assert [a["href"] for a in Reader(text).all("link")] == ["data:,"]


def test_sections_without_data_say_so() -> None:
    text = html.page(bare())
    for sentence in (
        "Latency was not measured",
        "No metric was measured",
        "No trade-off curve",
        "Not part of this run",
        "no prunable group",
        "no layers",
        "No sensitivities",
        "No per-class metric",
    ):
        assert sentence in text
    assert not Reader(text).all("svg")


def test_figures_of_the_report_are_on_the_page() -> None:
    text = html.page(full())
    comparison = (
        "2 of 3 have a larger relative output error",
        "so the criterion gained little",
        "at most 0.1 on 64 selection inputs",
        "compared by /block/conv on 125",
        "standard error about 0.01",
    )
    for figure in (
        *comparison,
        "Outputs on the held-out inputs",
        "87.5%",
        "50.0% of the MACs and 60.0% of the parameters remain",
        "1.66 times as fast",
        "interval 1.60 to 1.70",
        "1 of 2 targets missed",
        "cd" * 32,
        "2 more",
    ):
        assert figure in text
    assert (
        html.page(replace(full(), decided_by={"criterion": "random"})).count("chosen at random")
        == 1
    )


@pytest.mark.parametrize(
    "broken",
    [
        {"before": {"macs": "x"}},
        {"groups": [{"name": "a", "before": None, "after": 1}]},
        {"layers": [{}]},
        {"graph": [{"node": 1}]},
        {"stages": [{"name": "a", "seconds": "x"}]},
    ],
)
def test_values_of_a_wrong_type_are_rejected(broken: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="not a report"):
        html.page(Report.from_json({**full().to_json(), **broken}))


def test_report_command_writes_the_page_next_to_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(full().to_json()))
    for place in (tmp_path, tmp_path / "report.json"):
        assert run(["report", str(place)]) == 0
        assert str(tmp_path / "report.html") in capsys.readouterr().out
        assert (tmp_path / "report.html").read_text(encoding="utf-8") == html.page(full())
        (tmp_path / "report.html").unlink()
    with pytest.raises(OutputError):
        html.write(full(), tmp_path / "missing")


def test_measured_sensitivities_are_added_to_report_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(replace(full(3), measured={}).to_json()))
    sweep = [{"group": "", "quality": 0.9, "size": 0, "kept": 0}] + [
        {"group": f"/block/conv.{i}", "quality": 0.9 - 0.1 * i, "size": 8, "kept": 6}
        for i in range(3)
    ]
    (tmp_path / "sweep.jsonl").write_text("".join(json.dumps(r) + "\n" for r in sweep))
    assert run(["report", str(tmp_path), "--sensitivities", str(tmp_path / "sweep.jsonl")]) == 0
    found = Report.load(tmp_path)
    assert found.measured["/block/conv.2"] == [[0.25, pytest.approx(0.2)]] and (
        tmp_path / "report.html"
    ).read_text(encoding="utf-8") == html.page(found)
    assert "Quality that the model loses" in html.page(
        found
    ) and "Quality that the model loses" not in html.page(bare())
    for rows, code in (
        (sweep[1:], 2),
        ([*sweep, {"group": "a"}], 2),
        ([{**sweep[0], "key": "b:"}, *sweep], 2),
        ([*sweep, {**sweep[1], "group": "elsewhere"}], 2),
    ):
        (tmp_path / "sweep.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        assert (
            run(["report", str(tmp_path), "--sensitivities", str(tmp_path / "sweep.jsonl")]) == code
        )
    assert run(["report", str(tmp_path), "--sensitivities", str(tmp_path / "none.jsonl")]) == 1
    assert (
        Report.load(tmp_path) == found and "error[sensitivities-missing]" in capsys.readouterr().err
    )


def test_boxes_are_below_their_inputs_and_do_not_overlap() -> None:
    inputs = [[], [0], [0], [0], [1, 2], [3], [4, 5], [0, 6]]
    rows, columns = layout(inputs)
    assert all(rows[i] > rows[s] for i, sources in enumerate(inputs) for s in sources)
    places = sorted(zip(rows, columns, strict=False))
    assert all(b[1] - a[1] >= 1 - 1e-9 for a, b in pairwise(places) if a[0] == b[0])


def test_plot_places_points_by_value() -> None:
    svg = plot([Curve([(0.0, 1.0), (0.5, 2.0), (1.0, 4.0)], "#000000")], "x", "y", "label")
    x0, y0, x1, y1, x2, y2 = (
        float(v) for v in re.findall(r'd="M ([^"]+)"', svg)[0].replace("L", "").split()
    )
    assert x1 - x0 == pytest.approx(x2 - x1) and y1 - y2 == pytest.approx(2 * (y0 - y1))


def test_values_that_are_not_finite_have_no_place_in_a_plot() -> None:
    points = [(0.0, 1.0), (0.5, float("inf")), (0.6, float("nan")), (1.0, 4.0)]
    svg = plot([Curve(points, "s0"), Curve(points, "s1", dots=True)], "x", "y", "label")
    assert svg == plot(
        [Curve(points[::3], "s0"), Curve(points[::3], "s1", dots=True)], "x", "y", "label"
    )
    assert "<path" not in plot([Curve(points[1:2], "s0")], "x", "y", "label")
