"""Commands handoff, bench --collect and bench --ssh."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxprune import demo
from onnxprune.cli import run
from onnxprune.deploy.bundle import TargetResult
from onnxprune.deploy.handoff import Collected


def test_handoff_writes_a_bundle_of_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = demo.files()
    folder = tmp_path / "bundle"
    command = [
        "handoff",
        str(files.model),
        "--to",
        "nngen",
        "-o",
        str(folder),
        "--option",
        "bits=16",
        "--data",
        str(files.calibration),
        "--samples",
        "8",
    ]
    assert run(command) == 0
    said = capsys.readouterr()
    assert "only dense convolutions" in said.out and "run.py" in said.err
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["options"]["bits"] == "16" and manifest["models"]["original"]["inputs"] == {
        "images": [1, 1, 8, 8]
    }
    assert run(command) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run([*command, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"]["original"]["unsupported"] > 0


def test_collecting_prints_figures_and_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(demo.files().model)
    folder = tmp_path / "bundle"
    assert run(["handoff", model, model, "--to", "gemmini", "-o", str(folder)]) == 0
    assert run(["bench", "--collect", str(folder)]) == 1
    assert "no results yet" in capsys.readouterr().err
    (folder / "results").mkdir()
    for name, cycles in (("original", 3000), ("pruned", 1500)):
        (folder / "results" / f"{name}.json").write_text(json.dumps({"cycles": cycles}))
    assert run(["bench", "--collect", str(folder)]) == 0
    assert "2.00x" in capsys.readouterr().out
    assert run(["bench", "--collect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ratios"] == {"cycles": 2.0}


def test_invalid_arguments_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(demo.files().model)
    assert run(["handoff", model, "--to", "jetsn", "-o", str(tmp_path / "b")]) == 2
    assert "jetson" in capsys.readouterr().err
    assert run(["bench", model, "--ssh", "-oProxyCommand=x"]) == 2
    assert run(["bench"]) == 2
    assert run(["bench", model, model, model, "--ssh", "board"]) == 2
    assert run(["bench", model, "--ssh", "board", "--precision", "bf16"]) == 2
    assert "f32, f16, int8" in capsys.readouterr().err


def test_ssh_forwards_shapes_precision_and_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}

    def trip(folder: Path, host: str) -> Collected:
        seen.update(json.loads((folder / "manifest.json").read_text()), host=host)
        return Collected("jetson", {"original": TargetResult("original", {"latency_ms": 2.0})})

    monkeypatch.setattr("onnxprune.deploy.handoff.round_trip", trip)
    model = str(demo.files().model)
    assert (
        run(
            [
                "bench",
                model,
                "--ssh",
                "me@board",
                "--precision",
                "f16",
                "--seconds",
                "7",
                "--shape",
                "images:2,1,8,8",
            ]
        )
        == 0
    )
    assert "latency_ms" in capsys.readouterr().out
    assert seen["host"] == "me@board" and seen["models"]["original"]["inputs"] == {
        "images": [2, 1, 8, 8]
    }  # type: ignore[index]
    assert {k: seen["options"][k] for k in ("precision", "duration")} == {
        "precision": "fp16",
        "duration": "7",
    }  # type: ignore[index]
    assert "models/original.fp16.onnx" in seen["files"]  # type: ignore[operator]
