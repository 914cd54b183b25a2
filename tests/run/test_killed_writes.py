"""External data that a kill during a commit leaves without a graph."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from file_tree import tree

from onnxprune import demo
from onnxprune.files import remove_partial_files, write_json
from onnxprune.files.transaction import NOTICE
from onnxprune.ir.io import load, save
from onnxprune.ir.weights import from_array

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs locks, links and signals")

MODEL = demo.files().model
KILLED = """
import os, signal, sys
from onnxprune import demo
from onnxprune.ir.io import load, save
from onnxprune.run.pipeline import optimize

_, out, suffix, how = sys.argv
rename = os.replace

def replace(source, target):
    rename(source, target)
    if str(target).endswith(suffix):
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace
options = {"external_data": True, "overwrite": True}
model = demo.files().model
if how == "save":
    save(load(model), out, **options)
else:
    fast = {"criterion": "l2", "repair": "none", "engine": "none", "round_to": 1}
    optimize(model, out, target="macs=60%", **fast, **options)
"""


def save_shifted(path: Path, shift: float) -> None:
    """Save the demo model with other weights, their values apart."""
    model = load(MODEL).edit()
    for name, weight in list(model.weights.items()):
        if weight.dtype == onnx.TensorProto.FLOAT:
            model.weights[name] = from_array(weight.array() + np.float32(shift))
    save(model.freeze(), path, external_data=True)


def kill_after_rename(path: Path, suffix: str, how: str = "save") -> None:
    """Replace a model in a process that is killed once it has renamed a file of this suffix."""
    command = [sys.executable, "-c", KILLED, str(path), suffix, how]
    done = subprocess.run(command, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("how", ["save", "optimize"])
@pytest.mark.parametrize("suffix", [".data", ".onnx"])
def test_data_of_a_killed_commit_are_removed_by_the_next_write(
    tmp_path: Path, suffix: str, how: str
) -> None:
    out = tmp_path / "out.onnx"
    save_shifted(out, 2)
    kill_after_rename(out, suffix, how)
    assert len(list(tmp_path.glob("*.data"))) == 2
    (tmp_path / "out.onnx.mine.data").write_bytes(b"of the user")
    # by whatever is written next into the folder
    write_json(tmp_path / "other.json", {})
    remove_partial_files(tmp_path)
    assert len(list(tmp_path.glob("*.data"))) == 2
    assert not list(tmp_path.glob(".*.partial"))
    onnx.checker.check_model(str(out))


def test_data_that_a_graph_refers_to_stay(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    save_shifted(out, 2)
    os.link(out, tmp_path / "copy.onnx")
    kill_after_rename(out, ".onnx")
    out.rename(tmp_path / "best.onnx")
    remove_partial_files(tmp_path)
    assert len(list(tmp_path.glob("*.data"))) == 2
    onnx.checker.check_model(str(tmp_path / "best.onnx"))
    onnx.checker.check_model(str(tmp_path / "copy.onnx"))


def test_a_forged_notice_removes_nothing(tmp_path: Path) -> None:
    save_shifted(tmp_path / "m.onnx", 1)
    (data,) = tmp_path.glob("*.data")
    inner = tmp_path / "models"
    inner.mkdir()
    content = data.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    (inner / f"{'0' * 16}.data").write_bytes(content)
    (inner / f"x.{digest}.data").symlink_to(data)
    (inner / f"y.{digest}.data").mkdir()
    names = [f"../{data.name}", str(data), f"{'0' * 16}.data", f"x.{digest}.data", 3, "\0", ""]
    names += [f"y.{digest}.data", "nowhere.0123456789abcdef.data", "m.onnx", "n" * 5000]
    kept = tree(inner)
    for number, text in enumerate(
        (json.dumps({NOTICE: names}), json.dumps({NOTICE: 3}), "[" * 10000, json.dumps([NOTICE]))
    ):
        (inner / f".onnxprune-{number}.partial").write_text(text, encoding="utf-8")
    remove_partial_files(inner)
    assert tree(inner) == kept and data.read_bytes() == content
