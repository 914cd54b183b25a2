"""The report of a run as one HTML page.

It needs no network, is readable without JavaScript, and depends on nothing but report.json. Jinja2
fills the template, because it escapes the names that come from the model file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from onnxprune.errors import UsageError
from onnxprune.files import encode, write_bytes
from onnxprune.report import sections
from onnxprune.report.cards import cards
from onnxprune.report.coco_table import coco_tables
from onnxprune.report.conclusions import worst_level
from onnxprune.report.data import LatencyRow, Report
from onnxprune.report.distributions import distributions
from onnxprune.report.example_view import example_views
from onnxprune.report.picture import MOST_BOXES
from onnxprune.report.runs import Run, compare, find_runs
from onnxprune.report.sections import MOST_NAME, MOST_ROWS, MOST_TEXT
from onnxprune.report.terminal import format_fidelity, ratios
from onnxprune.report.text import clip, duration, number
from onnxprune.report.verdict import judge, name_engine

PAGE = "report.html"
_TEMPLATES = Path(__file__).with_name("templates")
# title by heading of each section, in their order on the page
_CONTENTS = {
    "result": "Result",
    "examples": "Predictions",
    "runs": "Runs",
    "trust": "Verification",
    "tradeoff": "Trade-off",
    "cut": "Pruned groups",
    "network": "Network",
    "time": "Layers",
    "frozen": "Frozen axes",
    "sensitivity": "Sensitivity",
    "classes": "Classes",
    "again": "Reproduce",
}
_FILES = (
    "result examples runs verification tradeoff groups network layers frozen sensitivity "
    "classes reproduce"
).split()
_SPLITS = {
    "calibration": "Calibration",
    "selection": "Selection among models, unlabeled",
    "selection_labels": "Selection among models, labeled",
    "report": "Held-out, unlabeled",
    "report_labels": "Held-out, labeled",
}


def write(report: Report, folder: Path, runs: Sequence[Run] | None = None) -> Path:
    """Write the page into `folder`, and return its path.

    Parameters
    ----------
    runs
        Runs to compare with; None for those of the same model next to `folder`.

    Raises
    ------
    UsageError
        The report holds values of a wrong type.
    OutputError
        The folder cannot be written.
    """
    path = folder / PAGE
    runs = find_runs(folder, report) if runs is None else runs
    write_bytes(path, encode(page(report, folder.resolve().name, runs)))
    return path


def page(report: Report, name: str = "", runs: Sequence[Run] = ()) -> str:
    """Return the page.

    Parameters
    ----------
    name
        Name of the run, shown if there are `runs` to compare it with.

    Raises
    ------
    UsageError
        The report holds values of a wrong type.
    """
    # the same from memory as from the file: JSON has no tuples and only text keys
    report = Report.from_json(json.loads(json.dumps(report.to_json())))
    try:
        # a report of the right structure may still hold values that no filter can format
        return _environment().get_template("page.html").render(_collect_content(report, name, runs))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, UndefinedError) as problem:
        raise UsageError(
            "report-invalid", f"not a report: {type(problem).__name__} {problem}"
        ) from problem


def headline(report: Report) -> str:
    """Return the result in one sentence."""
    share = report.after.macs / report.before.macs if report.before.macs else 1.0
    costs = f"{share:.1%} of the MACs"
    if report.before.params:
        costs += f" and {(report.after.params or 0) / report.before.params:.1%} of the parameters"
    parts = [f"{costs} remain"]
    for engine, latency in report.latency.items():
        parts.append(f"{latency.speedup:.2f} times as fast on {name_engine(engine, latency)}")
    for metric, quality in report.quality.items():
        parts.append(f"{metric} {quality.before:.4g} before, {quality.after:.4g} after")
    return "; ".join(parts) + "."


@cache  # it keeps the compiled templates, which take longer than a page
def _environment() -> Environment:
    """Return the template engine with the filters of the page."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        # a name that is missing in the report is an error, not an empty place on the page
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        # the page is UTF-8, and escapes would hide names in other scripts
        json=partial(json.dumps, ensure_ascii=False),
        pair=_compute_time_bars,
        amount=number,
        name=partial(clip, most=MOST_NAME),
        text=partial(clip, most=MOST_TEXT),
        seconds=duration,
    )
    return environment


def _collect_content(report: Report, name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the variables of the template."""
    script = _read("page.js")
    # the policy of the page allows this script and no other
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "r": report,
        # Markup: these files are part of the package, so that nothing in them is escaped
        "script": Markup(script),
        "style": Markup(_read("page.css")),
        "script_hash": script_hash,
        "title": f"{Path(report.source).name or 'model in memory'}, pruned",
        "headline": headline(report),
        "most": MOST_ROWS,
        "most_boxes": MOST_BOXES,
        "costs": sections.cost_lines(report),
        "metrics": sections.metric_lines(report),
        "fidelity": format_fidelity(report.fidelity),
        "ratios": ratios(report),
        "cards": cards(report),
        "contents": [
            (key, text) for key, text in _CONTENTS.items() if key != "network" or report.graph
        ],
        "files": [f"{name}.html" for name in _FILES],
        "level": worst_level(row.level for row in judge(report)),
        "splits": [(text, report.splits[p]) for p, text in _SPLITS.items() if p in report.splits],
        "control": sections.control(report),
        "outputs": sections.output_lines(report),
        "selection": sections.candidate_lines(report),
        "curve": sections.trade_off(report),
        "groups": sections.group_lines(report),
        "picture": sections.network(report),
        "runs": compare(Run(name, report), runs),
        "examples": example_views(report),
        "latencies": distributions(report),
        "operators": sections.operator_lines(report),
        "layers": sections.layer_lines(report),
        "timed": any(row.time_ms for row in report.layers),
        "frozen": sections.frozen_reasons(report.frozen),
        "sensitivity": sections.sensitivity_plot(report.sensitivity, "estimated divergence"),
        "measured": sections.sensitivity_plot(report.measured, "quality lost"),
        "classes": sections.class_tables(report),
        "coco": coco_tables(report),
        "command": _command(report),
        "random": report.decided_by.get("criterion") == "random",
    }


def _read(name: str) -> str:
    """Return the text of a file of the templates."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _compute_time_bars(row: LatencyRow) -> tuple[float, float]:
    """Return latency before and after in percent of the longer one."""
    # a computed latency may be 0
    longest = max(row.before_ms, row.after_ms) or 1.0
    return 100 * row.before_ms / longest, 100 * row.after_ms / longest


def _command(report: Report) -> str:
    """Return the command that repeats the run; "" for a model in memory.

    Like the next steps, it is for the folder in which the run was started. Reports of earlier
    versions do not know the path of their recipe from there.
    """
    # a model in memory has no path that a command could name
    if not report.source:
        return ""
    output = ("-o", report.output) if report.output else ()
    recipe = str(Path(report.run_dir) / "recipe.toml")
    return shlex.join(("onnxprune", "optimize", report.source, *output, "--recipe", recipe))
