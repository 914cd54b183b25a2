"""Bundles are complete, are never partly written, and return their results by ssh."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import stubs
import test_jetson

from onnxprune.deploy.handoff import TARGETS, choose, collect, handoff, round_trip
from onnxprune.errors import DataError, EngineError, OutputError, UsageError
from onnxprune.files import sha256, transaction
from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session


def test_bundle_holds_the_files_of_its_manifest(tmp_path: Path) -> None:
    original, pruned = stubs.convnet(16), stubs.convnet(8)
    bundle = handoff(original, pruned, "jetson", tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    present = {
        p.relative_to(tmp_path / "b").as_posix() for p in (tmp_path / "b").rglob("*") if p.is_file()
    }
    assert present == set(manifest["files"]) | {"manifest.json"} == set(bundle.files)
    assert all(sha256(tmp_path / "b" / n) == h for n, h in manifest["files"].items())
    assert manifest["models"]["pruned"]["inputs"] == {"images": [1, 1, 8, 8]}


def test_models_of_a_bundle_are_static_valid_and_equal_to_their_source(tmp_path: Path) -> None:
    source = stubs.convnet(16)
    handoff(source, None, "jetson", tmp_path / "b")
    proto = onnx.load(tmp_path / "b" / "models" / "original.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [1, 1, 8, 8]
    assert {v.name for v in proto.graph.value_info} == {
        o for n in proto.graph.node for o in n.output
    } - {"logits"}
    with (
        np.load(tmp_path / "b" / "inputs.npz") as inputs,
        np.load(tmp_path / "b" / "expected_original.npz") as expected,
    ):
        assert np.allclose(
            Session(source).run({"images": inputs["images"]})["logits"],
            expected["output_0"],
            atol=1e-6,
        )
    assert load(tmp_path / "b" / "models" / "original.onnx").opset == 13


def test_existing_folders_are_replaced_only_on_request(tmp_path: Path) -> None:
    handoff(stubs.convnet(8), None, "jetson", tmp_path / "b")
    with pytest.raises(OutputError, match="--overwrite"):
        handoff(stubs.convnet(8), None, "jetson", tmp_path / "b")
    handoff(stubs.convnet(8), None, "jetson", tmp_path / "b", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match="not a bundle"):
        handoff(stubs.convnet(8), None, "jetson", tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "mine"]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("exchange", [True, False])
def test_replaced_bundle_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(transaction, "_exchange", lambda *_: False)
    handoff(stubs.convnet(8), None, "jetson", tmp_path / "b")
    before = contents(tmp_path)
    handoff(stubs.convnet(16), None, "jetson", tmp_path / "b", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert contents(tmp_path).keys() == before.keys()
    assert contents(tmp_path)["b/manifest.json"] != before["b/manifest.json"]


def test_bundle_that_cannot_be_moved_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handoff(stubs.convnet(8), None, "jetson", tmp_path / "b")
    before = contents(tmp_path)
    moves, replace = [], os.replace

    def fail_once(source: str, target: str) -> None:
        if Path(target) == tmp_path / "b" and not moves:
            moves.append(source)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(transaction, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OutputError, match="cannot write .*b: No space left"):
        handoff(stubs.convnet(16), None, "jetson", tmp_path / "b", overwrite=True)
    assert moves and contents(tmp_path) == before


def test_unknown_targets_and_options_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="jetson"):
        handoff(stubs.convnet(8), None, "jetsn", tmp_path / "b")
    with pytest.raises(UsageError, match="precision"):
        choose(TARGETS.get("jetson"), {"precison": "fp16"})
    with pytest.raises(UsageError, match="fp32, fp16, int8"):
        choose(TARGETS.get("jetson"), {"precision": "fp8"})


def test_samples_must_fit_the_inputs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images"):
        handoff(
            stubs.convnet(8),
            None,
            "jetson",
            tmp_path / "b",
            samples={"x": np.zeros((1, 1, 8, 8), np.float32)},
        )


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 9, "models": {}, "target": "jetson"}']
)
def test_a_folder_that_is_not_a_bundle_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="not a bundle"):
        collect(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="not a bundle"):
        collect(tmp_path)


def test_missing_results_are_an_error(tmp_path: Path) -> None:
    handoff(stubs.convnet(8), None, "jetson", tmp_path / "b")
    with pytest.raises(DataError, match=r"python3 run\.py"):
        collect(tmp_path / "b")


def test_samples_fill_the_batch_of_the_model(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((10, 1, 8, 8), np.float32)
    for name, given, count in (("given", {"images": images}, 8), ("random", None, 32)):
        handoff(
            stubs.convnet(8),
            None,
            "jetson",
            tmp_path / name,
            shapes={"images": (4, 1, 8, 8)},
            samples=given,
        )
        with (
            np.load(tmp_path / name / "inputs.npz") as inputs,
            np.load(tmp_path / name / "expected_original.npz") as expected,
        ):
            expected_outputs = Session(stubs.convnet(8)).run({"images": inputs["images"][:count]})[
                "logits"
            ]
            assert expected["output_0"].shape == (count, 10) and np.allclose(
                expected["output_0"], expected_outputs, atol=1e-6
            )
    with pytest.raises(DataError, match="fewer than one batch"):
        handoff(
            stubs.convnet(8),
            None,
            "jetson",
            tmp_path / "few",
            shapes={"images": (16, 1, 8, 8)},
            samples={"images": images},
        )


SSH = """
line = args[args.index('--') + 1]
sys.exit(subprocess.call(['sh', '-c', line], cwd=os.environ['REMOTE']))
"""
SCP = """
def place(text):
    host, _, path = text.partition(":")
    return os.path.join(os.environ["REMOTE"], path) if host == "me@board" else text
source, target = (place(a) for a in args[-2:])
if os.path.isdir(target):
    target = os.path.join(target, os.path.basename(source))
shutil.copytree(source, target)
"""


def test_round_trip_by_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binaries, remote = test_jetson.board(tmp_path / "bin"), tmp_path / "remote"
    remote.mkdir()
    stubs.command(binaries, "ssh", SSH)
    stubs.command(binaries, "scp", SCP)
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin:/bin")
    monkeypatch.setenv("REMOTE", str(remote))
    handoff(
        stubs.convnet(16),
        stubs.convnet(8),
        "jetson",
        tmp_path / "b",
        options={"rounds": "1", "precision": "fp32", "idle": "0"},
    )
    collected = round_trip(tmp_path / "b", "me@board")
    assert collected.ratios["latency_ms"] == 2.0
    assert list(remote.iterdir()) == []
    sent, ran, *_ = ((binaries / f"{n}.args").read_text().splitlines() for n in ("scp", "ssh"))
    assert "BatchMode=yes" in sent[0] and "me@board" in ran[0]


def test_ssh_failures_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handoff(stubs.convnet(8), None, "jetson", tmp_path / "b")
    with pytest.raises(UsageError, match="not a host"):
        round_trip(tmp_path / "b", "-oProxyCommand=evil")
    binaries = tmp_path / "bin"
    stubs.command(
        binaries,
        "scp",
        "sys.stderr.write('board: Permission denied (publickey).\\n'); sys.exit(255)",
    )
    monkeypatch.setenv("PATH", str(binaries))
    with pytest.raises(EngineError, match="Permission denied"):
        round_trip(tmp_path / "b", "board")
    (binaries / "scp").unlink()
    with pytest.raises(EngineError, match="not on PATH"):
        round_trip(tmp_path / "b", "board")
