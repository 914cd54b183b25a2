"""Files of a finished run: plan, recipe, report and its page."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.files import Staging, encode, to_json
from onnxprune.report import html
from onnxprune.report.runs import find_runs
from onnxprune.run.recipe import Recipe
from onnxprune.run.recipe_file import to_toml
from onnxprune.run.results import Result
from onnxprune.run.rundir import RunDir

PLAN_FILE, RECIPE_FILE, JSON_FILE = "plan.json", "recipe.toml", "report.json"
REPORT_FILES = (JSON_FILE, html.PAGE, RECIPE_FILE, PLAN_FILE)


def write_report(
    result: Result, recipe: Recipe, provenance: Mapping[str, str], run: RunDir, files: Staging
) -> None:
    """Write plan, recipe and report of a run into its directory."""
    page = html.page(result.report, run.path.resolve().name, find_runs(run.path, result.report))
    contents = {
        PLAN_FILE: to_json(result.plan.to_json()),
        RECIPE_FILE: to_toml(recipe, provenance),
        JSON_FILE: to_json(result.report.to_json()),
        html.PAGE: page,
    }
    for name, text in contents.items():
        with files.file(run.file(name)) as file:
            file.write(encode(text))
