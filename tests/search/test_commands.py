"""Commands around searches and metrics read every option that they offer."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from onnxprune import demo
from onnxprune.analysis.walk import analyze
from onnxprune.cli import run
from onnxprune.cli.app import app
from onnxprune.files import json_lines
from onnxprune.ir.io import load
from onnxprune.run.recipe import OPTIONS, Recipe
from onnxprune.search.subnet import unit_names

FILES = demo.files()
DATA = ["--data", str(FILES.calibration), "--samples", "40"]
LABELS = ["--labeled", str(FILES.evaluation), "--metric", "top1"]


def arguments(command: str, folder: Path) -> list[str]:
    """A call of the command that uses all it may use: data, labels, a criterion on data."""
    model = str(FILES.model)
    if command == "compare":
        return [command, model, model, "--data", str(FILES.evaluation), "--samples", "40"]
    if command == "sensitivity":
        out = str(folder / "sweep.jsonl")
        return [command, model, "-o", out, "--rates", "0.5", *DATA, *LABELS, "--no-time"]
    analysis = analyze(load(FILES.model))
    unit = unit_names(analysis)[analysis.groups[0].name]
    (folder / "subnet.json").write_text(f'{{"{unit}": 4}}')
    return [command, model, str(folder / "subnet.json"), *DATA]


@pytest.mark.parametrize("command", ["compare", "sensitivity", "subnet"])
def test_every_option_that_is_offered_is_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()

    def record(recipe: Recipe, name: str) -> object:
        # the recipe reads all of its own options when it is made
        caller = Path(sys._getframe(1).f_code.co_filename).name
        if name in OPTIONS and caller not in ("recipe.py", "dataclasses.py"):
            read.add(name)
        return object.__getattribute__(recipe, name)

    call = arguments(command, tmp_path)
    monkeypatch.setattr(Recipe, "__getattribute__", record, raising=False)
    assert run(call) == 0
    parameters = app.get_command(click.Context(app), command).params
    offered = {p.name for p in parameters} & set(OPTIONS)
    assert offered and offered <= read


def test_compare_has_no_use_for_mirrored_calibration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments("compare", Path()), "--flip"]) == 2
    assert "--flip" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sensitivity", "subnet"])
def test_flip_mirrors_the_inputs_of_the_criterion(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Scores that see mirrored images as well choose other channels, and count as another sweep."""
    results = []
    for flags in ([], ["--flip"]):
        call = arguments(command, tmp_path)
        assert run([*call, "--criterion", "reconstruction", *flags, "--json"]) == 0
        results.append(capsys.readouterr().out)
    assert results[0] != results[1]
    if command == "sensitivity":
        keys = [row["key"] for row in json_lines(tmp_path / "sweep.jsonl")]
        assert len({key.partition(":")[0] for key in keys}) == 2
