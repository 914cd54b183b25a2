"""Command `tune` reads every option that it offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from option_reads import offered, read_by

from onnxprune import demo
from onnxprune.cli import run

pytest.importorskip("torch")
from onnxprune.tune import finetune

MODEL, CALIBRATION, EVALUATION = map(str, demo.files())
DATA = ["--data", CALIBRATION, "--samples", "32", "--steps", "1"]


def test_every_offered_option_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ["--metric", "top1", "--labeled", EVALUATION]
    cuts = ["--target", "macs=95%", "--interval", "1", "--cut-step", "40"]
    calls = [
        ["tune", MODEL, "-o", str(tmp_path / "a.onnx"), "--teacher", MODEL, *DATA, *labels],
        ["tune", MODEL, "-o", str(tmp_path / "b.onnx"), *DATA, *cuts],
    ]
    names = offered("tune")
    assert names and names <= read_by(calls, monkeypatch)


@pytest.mark.parametrize("flag", ["--allocate", "--method"])
def test_options_of_a_search_are_not_offered(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", MODEL, *DATA, flag, "1"]) == 2
    assert flag in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "augment"),
    [
        ([], "none"),
        (["--flip"], "flip"),
        (["--augment", "flip-shift"], "flip-shift"),
        (["--flip", "--augment", "none"], "none"),
    ],
)
def test_flip_mirrors_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], augment: str
) -> None:
    seen: list[str] = []
    tune = finetune.tune

    def record(model: Any, data: Any, settings: Any, **keywords: Any) -> Any:
        seen.append(settings.augment)
        return tune(model, data, settings, **keywords)

    monkeypatch.setattr(finetune, "tune", record)
    out = str(tmp_path / "t.onnx")
    assert run(["tune", MODEL, "-o", out, "--teacher", MODEL, *DATA, *flags]) == 0
    assert seen == [augment]
