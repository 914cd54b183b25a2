"""Commands compare, sparsify, tune, rewrite and subnet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import demo
from onnxprune.analysis.walk import analyze
from onnxprune.cli import run
from onnxprune.ir.io import load

FILES = demo.files()
MODEL, CALIBRATION, EVALUATION = map(str, FILES)


def test_sparsify_writes_zeros_and_notes_that_they_save_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.onnx"
    assert run(["sparsify", MODEL, "-o", str(out), "--amount", "0.3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for row in found["tensors"]:
        if row["op"] == "Conv":
            zeros = int((load(out).weights[row["tensor"]].array() == 0).sum())
            assert zeros == row["zeros"] == round(0.3 * row["size"])
    assert "save nothing on dense engines" in found["note"]
    assert (
        run(["sparsify", MODEL, "-o", str(out)]) == 1 and "--overwrite" in capsys.readouterr().err
    )
    assert (
        run(["sparsify", str(out), "--report-only"]) == 0 and "zeros: " in capsys.readouterr().out
    )
    assert (
        run(["sparsify", MODEL, "-o", str(tmp_path / "t.onnx"), "--refit"]) == 2
        and "--data" in capsys.readouterr().err
    )
    assert (
        run(
            [
                "sparsify",
                MODEL,
                "-o",
                str(tmp_path / "d.onnx"),
                "--amount",
                "0.3",
                "--data",
                CALIBRATION,
                "--samples",
                "64",
                "--json",
            ]
        )
        == 0
    )
    shares = [
        t["zeros"] / t["size"]
        for t in json.loads(capsys.readouterr().out)["tensors"]
        if t["op"] == "Conv"
    ]
    assert min(shares) < 0.2 < max(shares), (
        "with data the share goes where the outputs change least"
    )


def test_compare_of_a_model_with_itself_and_with_a_sparse_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "s.onnx")
    assert run(["sparsify", MODEL, "-o", out, "--amount", "0.9"]) == 0
    capsys.readouterr()
    assert run(["compare", MODEL, MODEL, "--labeled", EVALUATION, "--json"]) == 0
    same = json.loads(capsys.readouterr().out)["top1"]
    assert (
        same["difference"] == 0
        and same["cost"]["a"] == same["cost"]["b"]
        and len(same["classes"]) == 10
    )
    assert run(["compare", MODEL, out, "--data", EVALUATION, "--classes", "3,5", "--json"]) == 0
    worse = json.loads(capsys.readouterr().out)["top1"]
    assert [row["index"] for row in worse["classes"]] == [3, 5] and worse["b"]["value"] < worse[
        "a"
    ]["value"]
    assert (
        run(["compare", MODEL, out, "--data", EVALUATION]) == 0
        and "macs" in capsys.readouterr().out
    )
    assert run(["compare", MODEL, out]) == 2 and "--labeled" in capsys.readouterr().err
    assert run(["compare", MODEL, out, "--labeled", EVALUATION, "--classes", "a"]) == 2


def test_tuned_score_is_never_below_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    sparse, out = str(tmp_path / "s.onnx"), str(tmp_path / "t.onnx")
    assert run(["sparsify", MODEL, "-o", sparse, "--amount", "0.7"]) == 0
    capsys.readouterr()
    command = [
        "tune",
        sparse,
        "-o",
        out,
        "--teacher",
        MODEL,
        "--data",
        CALIBRATION,
        "--steps",
        "6",
        "--keep-zeros",
        "--metric",
        "top1",
        "--labeled",
        EVALUATION,
    ]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["score"] >= found["start_score"] and found["quality"]["top1"]["samples"] == 500
    before, after = load(sparse), load(out)
    for name, weight in before.weights.items():
        if weight.array().ndim == 4:
            assert not np.any(after.weights[name].array()[weight.array() == 0])
    assert (
        run(["tune", sparse, "-o", str(tmp_path / "u.onnx"), "--data", CALIBRATION]) == 2
        and "teacher" in capsys.readouterr().err
    )


def test_tune_reaches_a_target_and_its_plan_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    out, plan = str(tmp_path / "t.onnx"), str(tmp_path / "plan.json")
    command = [
        "tune",
        MODEL,
        "-o",
        out,
        "--target",
        "macs=90%",
        "--interval",
        "1",
        "--data",
        CALIBRATION,
        "--steps",
        "2",
        "--round-to",
        "4",
    ]
    assert run([*command, "--plan", plan, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["score"] >= found["start_score"]
    assert analyze(load(out)).cost().macs <= 0.9 * analyze(load(MODEL)).cost().macs
    assert run(["verify", MODEL, out, "--plan", plan]) == 0
    capsys.readouterr()
    assert (
        run([*command, "--overwrite", "--keep-zeros"]) == 2
        and "one after the other" in capsys.readouterr().err
    )
    command[command.index("macs=90%")] = "macs=10%"
    assert (
        run(
            [
                *command,
                "--overwrite",
                "--checkpoint",
                str(tmp_path / "c"),
                "--floor",
                "3",
                "--max-fraction",
                "0.5",
            ]
        )
        == 3
    )
    assert "floor=3, max_fraction=0.5, round_to=4" in capsys.readouterr().err


def test_rewrite_replaces_and_reports_activations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 4] x) => (float[1, 4] y) { y = LeakyRelu (x) }
    """
    source, out = tmp_path / "l.onnx", tmp_path / "r.onnx"
    onnx.save(onnx.parser.parse_model(text), source)
    assert run(["rewrite", str(source), "-o", str(out), "--activation", "relu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replaced"] == {"leakyrelu": 1}
    assert [n.op_type for n in onnx.load(out).graph.node] == ["Relu"]
    assert (
        run(["rewrite", MODEL, "-o", str(tmp_path / "x.onnx"), "--activation", "rlu"]) == 2
        and "relu" in capsys.readouterr().err
    )


def test_subnet_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, counts, again = (
        str(tmp_path / n) for n in ("plan.json", "fix_subnet.json", "again.json")
    )
    assert (
        run(
            [
                "plan",
                MODEL,
                "-o",
                plan,
                "--criterion",
                "l2",
                "--ratio",
                "[(0, 0.5), (1, 0.25)]",
                "--target",
                "macs=99%",
            ]
        )
        == 0
    )
    assert run(["subnet", MODEL, plan, "-o", counts]) == 0
    assert run(["subnet", MODEL, counts, "-o", again, "--criterion", "0"]) == 0
    capsys.readouterr()
    first, second = (json.loads(Path(p).read_text())["groups"] for p in (plan, again))
    assert first == second and len(first) >= 2
    assert run(["subnet", MODEL, str(tmp_path / "none.json")]) == 2
