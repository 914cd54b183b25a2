"""Options of the commands around searches and metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune import demo
from onnxprune.analysis.walk import analyze
from onnxprune.cli import run
from onnxprune.files import json_lines
from onnxprune.ir.io import load
from onnxprune.search.subnet import unit_names

FILES = demo.files()
DATA = ["--data", str(FILES.calibration), "--samples", "40"]


def arguments(command: str, folder: Path) -> list[str]:
    """Return a call of the command with calibration data."""
    model = str(FILES.model)
    if command == "sensitivity":
        out = str(folder / "sweep.jsonl")
        return [command, model, "-o", out, "--rates", "0.5", *DATA, "--no-time"]
    analysis = analyze(load(FILES.model))
    unit = unit_names(analysis)[analysis.groups[0].name]
    (folder / "subnet.json").write_text(f'{{"{unit}": 4}}')
    return [command, model, str(folder / "subnet.json"), *DATA]


def test_compare_ignores_flip(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["compare", str(FILES.model), str(FILES.model), "--labeled", str(FILES.evaluation)]
    results = []
    for flags in ([], ["--flip"]):
        assert run([*call, *flags]) == 0
        captured = capsys.readouterr()
        results.append(captured.out)
        assert ("--flip has no effect on compare" in captured.err) == bool(flags)
    assert results[0] == results[1]


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
