"""Named pipes, devices and huge texts in place of files that are read: one sentence, no wait."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graph_text import net

from onnxprune import demo
from onnxprune.data import images, npy
from onnxprune.data.label_formats.npz import LabeledArrays
from onnxprune.data.labeled import open_labeled
from onnxprune.deploy.collect import collect
from onnxprune.deploy.targets.reports import load_json
from onnxprune.errors import ModelError, OnnxpruneError
from onnxprune.files import append_json_line, json_files, json_lines, read_text, regular
from onnxprune.ir.io import load
from onnxprune.ir.runtime import example_feeds
from onnxprune.report.data import Report
from onnxprune.run.pipeline import optimize
from onnxprune.run.recipe_file import MOST_CHARACTERS, read
from onnxprune.run.rundir import JOURNAL, LOCK, open_run_dir
from onnxprune.types import Plan

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")

MODEL = demo.files().model
FAST = {"criterion": "l2", "repair": "none", "engine": "none"}


def read_image(path: Path) -> None:
    pytest.importorskip("PIL")
    images.decode(path, 3)


def read_labels(path: Path) -> None:
    open_labeled(path, {"images": (["N", 1, 8, 8], "tensor(float)")})


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "model": ("m.onnx", load),
    "plan": ("plan.json", Plan.load),
    "recipe": ("recipe.toml", read),
    "report": ("report.json", Report.load),
    "report of a target": ("report.json", lambda path: load_json(path, "the report")),
    "manifest": ("manifest.json", lambda path: collect(path.parent)),
    "journal": ("journal.jsonl", lambda path: list(json_lines(path))),
    "end of a journal": ("journal.jsonl", lambda path: append_json_line(path, {})),
    "image": ("a.png", read_image),
    "array": ("a.npy", npy.stored_arrays),
    "arrays": ("a.npz", npy.stored_arrays),
    "labels": ("a.npz", read_labels),
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_special_file_is_refused_without_a_wait(tmp_path: Path, name: str, kind: str) -> None:
    file, reader = READERS[name]
    path = tmp_path / file
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    # the end of a journal is no link either
    with pytest.raises(OnnxpruneError, match="not a regular file|cannot write") as caught:
        reader(path)
    assert "Errno" not in caught.value.message


@pytest.mark.parametrize("name", ["plan", "recipe", "report", "report of a target", "manifest"])
def test_texts_have_a_limit(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, reader = READERS[name]
    (tmp_path / file).write_bytes(b"[" * 2000)
    monkeypatch.setattr(regular, "MOST_TEXT_BYTES", 1000)
    with pytest.raises(OnnxpruneError, match="the limit for text"):
        reader(tmp_path / file)


def test_recipes_have_a_limit_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b"threads = 2\n".ljust(MOST_CHARACTERS))
    assert read(path)
    path.write_bytes(b"threads = 2\n".ljust(MOST_CHARACTERS + 1))
    with pytest.raises(OnnxpruneError, match="over 1 MB, the limit for text"):
        read(path)


def test_text_of_another_system_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a\r\nb\n")
    assert read_text(tmp_path / "a") == "a\nb\n"


def test_long_lines_of_a_journal_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MOST_TEXT_BYTES", 100)
    (tmp_path / "j").write_bytes(b'{"a": "' + b"x" * 1000 + b'"}\n{"b": 2}\n')
    assert list(json_lines(tmp_path / "j")) == [{"b": 2}]


@pytest.mark.parametrize("name", [JOURNAL, LOCK])
def test_pipe_in_a_run_directory_is_refused(tmp_path: Path, name: str) -> None:
    with open_run_dir(tmp_path / "out.run"):
        pass
    (tmp_path / "out.run" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "out.run" / name)
    with pytest.raises(OnnxpruneError, match="named pipe|not a run directory"):
        optimize(MODEL, tmp_path / "out.onnx", **FAST)
    assert not (tmp_path / "out.onnx").exists()


def test_inputs_without_a_type_are_not_drawn() -> None:
    proto = net("float[2,4] x | float[4,3] w | y = MatMul(x, w)")
    proto.graph.input[0].type.Clear()
    with pytest.raises(ModelError, match="'x' is not a tensor of a known type"):
        example_feeds(load(proto))
    proto.graph.input[0].type.tensor_type.elem_type = 99
    with pytest.raises(ModelError, match="'x' is not a tensor of a known type"):
        example_feeds(load(proto))


def test_labels_are_still_read(tmp_path: Path) -> None:
    values = np.zeros((4, 1, 8, 8), np.float32)
    np.savez(tmp_path / "a.npz", images=values, labels=np.zeros(4, np.int64))
    data = open_labeled(tmp_path / "a.npz", {"images": (["N", 1, 8, 8], "tensor(float)")})
    assert isinstance(data.source, LabeledArrays) and data.source.count == 4
