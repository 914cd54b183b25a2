"""The report of a run as one page: no network, readable without JavaScript, the same bytes for the same report.json.

Jinja2 fills the template: without it, escaping every name that a model file brings would be up to us at every place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined, UndefinedError
from markupsafe import Markup

from onnxprune.errors import UsageError
from onnxprune.files import write_bytes
from onnxprune.report.data import Report
from onnxprune.report.picture import MOST_BOXES, picture, tints
from onnxprune.report.plots import AFTER, BEFORE, Curve, curves, plot
from onnxprune.report.terminal import agreement_name, amount, duration, held_out

PAGE = "report.html"
MOST_ROWS = 400  # of a table; with MOST_NAME this keeps the page below a megabyte
MOST_NAME = 160  # characters of a name that are shown
MOST_CURVES = 12
MOST_CLASSES = 30
MOST_TEXT = 600
_COSTS = (
    ("macs", "Multiply-accumulates (MACs)", ""),
    ("params", "Parameters", ""),
    ("bytes", "Size of the weights", "B"),
    ("activation_bytes", "Activation memory", "B"),
)
_SPLITS = {
    "calibration": "Calibration",
    "selection": "Selection among models, unlabeled",
    "selection_labels": "Selection among models, labeled",
    "report": "Held-out, unlabeled",
    "report_labels": "Held-out, labeled",
}


def write(report: Report, folder: Path) -> Path:
    """Write the page into `folder`; returns where it is.

    Raises
    ------
    UsageError
        The report holds values of a wrong kind.
    OutputError
        The folder cannot be written.
    """
    path = folder / PAGE
    write_bytes(path, page(report).encode())
    return path


def page(report: Report) -> str:
    """The whole page. Depends on nothing but what report.json holds.

    Raises
    ------
    UsageError
        The report holds values of a wrong kind.
    """
    report = Report.from_json(json.loads(json.dumps(report.to_json())))
    environment = Environment(
        loader=DictLoader({"page": _file("template.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        json=partial(json.dumps, ensure_ascii=False),
        pair=_time_bars,
        amount=number,
        name=partial(clip, most=MOST_NAME),
        text=partial(clip, most=MOST_TEXT),
        seconds=duration,
    )
    script, style = _file("page.js"), _file("page.css")
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    try:
        return environment.get_template("page").render(
            r=report,
            script=Markup(script),
            style=Markup(style),
            script_hash=own,
            title=_title(report),
            headline=headline(report),
            most=MOST_ROWS,
            most_boxes=MOST_BOXES,
            costs=_cost_rows(report),
            metrics=_metric_rows(report),
            fidelity=held_out(report),
            agreement=agreement_name(report.fidelity),
            missed=[t for t in report.targets if t.reached > t.allowed * 1.05],
            splits=[
                (text, report.splits[part])
                for part, text in _SPLITS.items()
                if part in report.splits
            ],
            control=_control(report),
            outputs=_outputs(report),
            selection=_selection(report),
            curve=_curve(report),
            groups=_group_rows(report),
            picture=_picture(report),
            layers=_layer_rows(report),
            timed=any(r.get("time_ms") for r in report.layers),
            frozen=_frozen(report.frozen),
            sensitivity=_sensitivity(report.sensitivity, "estimated divergence"),
            measured=_sensitivity(report.measured, "quality lost"),
            classes=_classes(report),
            command=_command(report),
            random=report.decided_by.get("criterion") == "random",
        )
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, UndefinedError) as problem:
        raise UsageError(
            "report-invalid", f"not a report: {type(problem).__name__} {problem}"
        ) from problem


def number(value: Any, unit: str = "") -> str:
    """A figure for a table: three digits and a prefix, or a dash where there is none."""
    return amount(value, unit) if isinstance(value, (int, float)) and isfinite(value) else "–"


def clip(text: Any, most: int) -> str:
    """A long text without its middle."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def headline(report: Report) -> str:
    """What came of it, in one sentence."""
    share = report.after["macs"] / report.before["macs"] if report.before.get("macs") else 1.0
    costs = f"{share:.1%} of the MACs"
    if report.before.get("params"):
        params = report.after["params"] / report.before["params"]
        costs += f" and {params:.1%} of the parameters"
    parts = [f"{costs} remain"]
    parts += [
        f"{row['speedup']:.2f} times as fast on {engine}" for engine, row in report.latency.items()
    ]
    parts += [
        f"{metric} {row['before']:.4g} before, {row['after']:.4g} after"
        for metric, row in report.quality.items()
    ]
    return "; ".join(parts) + "."


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _title(report: Report) -> str:
    name = Path(report.source).name or "model in memory"
    return f"{name}, pruned"


def _cost_rows(report: Report) -> list[dict[str, Any]]:
    """Counted costs that are in both columns."""
    rows = []
    for key, title, unit in _COSTS:
        if key in report.before and key in report.after:
            before, after = report.before[key], report.after[key]
            rows.append(
                {
                    "title": title,
                    "before": number(before, unit),
                    "after": number(after, unit),
                    "share": after / before if before else 1.0,
                }
            )
    return rows


def _time_bars(row: Mapping[str, float]) -> tuple[float, float]:
    """Latency before and after in per cent of the longer one."""
    longest = max(row["before_ms"], row["after_ms"]) or 1.0
    return 100 * row["before_ms"] / longest, 100 * row["after_ms"] / longest


def _metric_rows(report: Report) -> list[dict[str, Any]]:
    """Quality, with a word on whether the difference says anything."""
    rows = []
    for metric, row in report.quality.items():
        error, change = row.get("standard_error"), row["after"] - row["before"]
        note = (
            ""
            if not error
            else "within two standard errors"
            if abs(change) <= 2 * error
            else "more than two standard errors"
        )
        rows.append(
            {
                "metric": metric,
                "before": row["before"],
                "after": row["after"],
                "change": change,
                "error": error,
                "note": note,
                "samples": row.get("samples"),
            }
        )
    return rows


def _outputs(report: Report) -> list[dict[str, Any]]:
    """Fidelity of each output, where there are several."""
    outputs = report.fidelity.get("outputs", {})
    agreement = {
        name: next(
            (row[k] for k in ("top1_agreement", "location_agreement") if row.get(k) is not None),
            None,
        )
        for name, row in outputs.items()
    }
    rows = [
        {
            "name": name,
            "error": row["relative_error"],
            "agreement": agreement[name],
            "largest": row["max_abs"],
        }
        for name, row in outputs.items()
    ]
    return rows if len(rows) > 1 else []


def _own(report: Report) -> dict[str, Any]:
    """The figures of the model that was written, as those of a control."""
    metrics = {
        m: {"value": row["after"], "standard_error": row.get("standard_error")}
        for m, row in report.quality.items()
    }
    return {
        "relative_error": report.fidelity.get("relative_error"),
        "agreement": report.fidelity.get("agreement"),
        "metrics": metrics,
    }


def _measures(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float | None]]]:
    """(measure, its value in each row) of those that some row has: metrics first."""
    names = dict.fromkeys(m for row in rows for m in row.get("metrics", {}))
    found = [(m, [row.get("metrics", {}).get(m, {}).get("value") for row in rows]) for m in names]
    found += [
        (title, [row.get(name) for row in rows])
        for name, title in (("agreement", "Agreement"), ("relative_error", "Relative output error"))
    ]
    return [(name, values) for name, values in found if any(v is not None for v in values)]


def _control(report: Report) -> dict[str, Any] | None:
    """This model beside the random ones, and how many of them are farther from the original."""
    if not report.control:
        return None
    rows = [_own(report), *report.control]
    own, *others = [row["relative_error"] for row in rows]
    farther = sum(other is None or other > own for other in others) if own is not None else None
    return {
        "rows": ["This model", *(f"Random {i}" for i in range(1, len(rows)))],
        "measures": _measures(rows),
        "count": len(others),
        "farther": farther,
    }


def _selection(report: Report) -> list[dict[str, Any]]:
    """Candidates with their figure, or why there is none."""
    return [
        {**row, "way": f"{row['criterion']}, {row['allocate']}"}
        for row in report.selection.get("rows", ())
    ]


def _curve(report: Report) -> dict[str, Any] | None:
    """The trade-off as a plot and as rows."""
    points = sorted(
        (p for p in report.curve if p["quality"] is not None and isfinite(p["quality"])),
        key=lambda p: p["macs"],
    )
    if len(points) < 2:
        return None
    places = [(float(p["macs"]), float(p["quality"])) for p in points]
    chosen = [place for place, p in zip(places, points, strict=False) if p.get("chosen")]
    drawn = [
        Curve(places, BEFORE),
        Curve(places, BEFORE, dots=True),
        Curve(chosen, AFTER, dots=True, large=True),
    ]
    metric = str(points[0].get("metric", "quality"))
    label = f"{metric} over the share of remaining MACs, {len(points)} points"
    svg = plot(
        [c for c in drawn if c.points], "remaining MACs", clip(metric, 40), label, from_zero=False
    )
    measures = _measures(points) or [(metric, [p["quality"] for p in points])]
    errors = [
        e
        for p in points
        if p.get("chosen") and (e := p.get("metrics", {}).get(metric, {}).get("standard_error"))
    ]
    return {
        "svg": Markup(svg),
        "points": points,
        "metric": metric,
        "measures": measures,
        "error": max(errors, default=None),
    }


def _group_rows(report: Report) -> list[dict[str, Any]]:
    """Rows of the table of groups, numbered as in the picture."""
    colors = tints(report.graph)
    return [
        {
            **asdict(g),
            "number": i,
            "color": colors.get(g.name),
            "share": g.after / max(g.before, 1),
        }
        for i, g in enumerate(report.groups, 1)
    ]


def _picture(report: Report) -> Markup | None:
    """The network, where it is small enough to be drawn."""
    if not 0 < len(report.graph) <= MOST_BOXES:
        return None
    numbers = {g.name: i for i, g in enumerate(report.groups, 1)}
    graph = [{**box, "node": clip(box["node"], MOST_NAME)} for box in report.graph]
    return Markup(picture(graph, numbers, {g.name: (g.before, g.after) for g in report.groups}))


def _layer_rows(report: Report) -> list[dict[str, Any]]:
    """Layers with MACs a byte and bars; beyond MOST_ROWS the costliest, in the order of the graph."""

    def cost(row: Mapping[str, Any]) -> tuple[float, float]:
        times = row.get("time_ms") or (None,)
        return times[0] or 0.0, row["macs"][0]

    costly = sorted(range(len(report.layers)), key=lambda i: cost(report.layers[i]), reverse=True)[
        :MOST_ROWS
    ]
    times = any(r.get("time_ms") for r in report.layers)
    shown = [
        (r, (r.get("time_ms") or (None, None)) if times else r["macs"])
        for r in (report.layers[i] for i in sorted(costly))
    ]
    longest = max((v for _, values in shown for v in values if v), default=0) or 1
    rows = []
    for row, values in shown:
        intensity = [
            m / b if b else None
            for m, b in zip(row["macs"], row.get("bytes", (0, 0)), strict=False)
        ]
        rows.append(
            {
                **row,
                "time_ms": row.get("time_ms") or (None, None),
                "intensity": intensity,
                "bars": [100 * (v or 0) / longest for v in values],
            }
        )
    return rows


def _frozen(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, int, list[Mapping[str, Any]]]]:
    """(reason, how many, the first of them), the most frequent reason first."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(clip(row["reason"], MOST_TEXT), []).append(row)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:40]
    return [
        (reason, len(members), members[: max(MOST_ROWS // len(ordered), 5)])
        for reason, members in ordered
    ]


def _sensitivity(rows: Mapping[str, Sequence[Sequence[float]]], what: str) -> dict[str, Any] | None:
    """The groups that hurt most, as curves."""
    curve = {
        name: [(0.0, 0.0), *((float(x), float(y)) for x, y in points)]
        for name, points in rows.items()
        if points
    }
    if not curve:
        return None
    worst = sorted(curve, key=lambda name: (-max(y for _, y in curve[name]), name))[:MOST_CURVES]
    drawn = curves([curve[name] for name in worst])
    svg = plot(
        drawn, "removed share of the group's channels", what, f"sensitivity of {len(worst)} groups"
    )
    return {
        "svg": Markup(svg),
        "legend": list(zip(worst, drawn, strict=False)),
        "total": len(curve),
        "points": {name: curve[name][-1] for name in worst},
    }


def _classes(report: Report) -> list[dict[str, Any]]:
    """By metric: the classes that changed most."""
    found = []
    for metric, row in report.quality.items():
        rows = [
            {"class": c, "before": b, "after": a, "change": a - b, "count": n}
            for c, (b, a, n) in row.get("classes", {}).items()
            if b is not None and a is not None
        ]
        rows.sort(key=lambda r: (-abs(r["change"]), len(r["class"]), r["class"]))
        if rows:
            found.append(
                {
                    "metric": metric,
                    "rows": rows[:MOST_CLASSES],
                    "total": len(rows),
                    "worse": sum(r["change"] < 0 for r in rows),
                }
            )
    return found


def _command(report: Report) -> str:
    """What does the run again, beside its recipe.toml."""
    parts: Sequence[str] = (
        "onnxprune",
        "optimize",
        report.source,
        *(("-o", report.output) if report.output else ()),
        "--recipe",
        "recipe.toml",
    )
    return shlex.join(parts) if report.source else ""
