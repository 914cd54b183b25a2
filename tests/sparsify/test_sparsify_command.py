"""Command `sparsify` reads every option that it offers."""

from __future__ import annotations

from pathlib import Path

import pytest
from option_reads import offered, read_by

from onnxprune import demo
from onnxprune.cli import run
from onnxprune.ir.io import digest, load

MODEL, CALIBRATION, _ = map(str, demo.files())
DATA = ["--data", CALIBRATION, "--samples", "32"]


def test_every_offered_option_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timing = ["--engine", "onnxruntime", "--seconds", "0.1"]
    call = ["sparsify", MODEL, "-o", str(tmp_path / "s.onnx"), *DATA, *timing]
    names = offered("sparsify")
    assert names and names <= read_by([call], monkeypatch)


def test_flip_calibrates_on_mirrored_images(tmp_path: Path) -> None:
    digests = []
    for flags in ([], ["--flip"]):
        out = str(tmp_path / f"{len(digests)}.onnx")
        assert run(["sparsify", MODEL, "-o", out, "--scope", "tensor", *DATA, *flags]) == 0
        digests.append(digest(load(out)))
    assert digests[0] != digests[1]


def test_flip_needs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 3] y)
        <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { y = MatMul (x, w) }"""
    import onnx

    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    call = ["sparsify", str(tmp_path / "m.onnx"), "--ops", "MatMul", "--data", "synthetic"]
    assert run([*call, "--flip"]) == 1
    assert "cannot mirror" in capsys.readouterr().err
