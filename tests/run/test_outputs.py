"""Outputs: names, external data, and writes that fail or are killed at any point."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from file_tree import tree

from onnxprune import demo, files
from onnxprune.errors import OutputError, UsageError
from onnxprune.events import Event
from onnxprune.files import Staging, append_json_line, remove_partial_files, staging
from onnxprune.ir.io import Model, load, save
from onnxprune.ir.weights import ArrayWeight
from onnxprune.run.adapter import analyze_for_plan
from onnxprune.run.job import REPORT_FILES
from onnxprune.run.outputs import choose_output
from onnxprune.run.pipeline import optimize
from onnxprune.run.rundir import JOURNAL, LOCK, open_run_dir
from onnxprune.scratch import Scratch
from onnxprune.types import Plan

MODEL = demo.files().model
FAST: dict[str, Any] = {"criterion": "l2", "repair": "none", "engine": "none", "round_to": 1}


def scaled(factor: float) -> Model:
    """Return the demo model with scaled weights, so that files differ."""
    model = load(MODEL).edit()
    for name, weight in list(model.weights.items()):
        if weight.dtype == onnx.TensorProto.FLOAT:
            model.weights[name] = ArrayWeight(weight.dtype, weight.array() * np.float32(factor))
    return model.freeze()


def test_graph_and_external_data_change_together(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(scaled(1), path, external_data=True)
    first = tree(tmp_path)
    (data,) = set(first) - {"m.onnx"}
    assert data.startswith("m.onnx.") and data.endswith(".data")
    save(scaled(2), path, external_data=True, overwrite=True)
    (other,) = set(tree(tmp_path)) - {"m.onnx"}
    assert other != data
    onnx.checker.check_model(str(path))
    weights = load(path).weights
    expected = scaled(2).weights
    assert all(np.array_equal(weights[n].array(), expected[n].array()) for n in expected)
    # the same files, whatever was in their place
    save(scaled(1), path, external_data=True, overwrite=True)
    assert tree(tmp_path) == first
    # of damaged data, too
    (tmp_path / data).write_bytes(b"half")
    save(scaled(1), path, external_data=True, overwrite=True)
    assert tree(tmp_path) == first
    save(scaled(3), path, external_data=False, overwrite=True)
    assert set(tree(tmp_path)) == {"m.onnx"}
    (tmp_path / "m.onnx").unlink()
    (tmp_path / data).write_bytes(b"of another")
    with pytest.raises(OutputError, match=f"{data} exists"):
        save(scaled(1), path, external_data=True)


def test_data_of_another_graph_are_kept(tmp_path: Path) -> None:
    (tmp_path / "m.onnx.data").write_bytes(b"precious")
    (tmp_path / "m.onnx").write_bytes(b"no model")
    save(scaled(1), tmp_path / "m.onnx", external_data=True, overwrite=True)
    assert (tmp_path / "m.onnx.data").read_bytes() == b"precious"
    onnx.checker.check_model(str(tmp_path / "m.onnx"))


def test_data_of_the_source_are_kept(tmp_path: Path) -> None:
    save(scaled(1), tmp_path / "a.onnx", external_data=True)
    (tmp_path / "b.onnx").write_bytes((tmp_path / "a.onnx").read_bytes())
    (data,) = tmp_path.glob("*.data")
    before = data.read_bytes()
    optimize(tmp_path / "a.onnx", tmp_path / "b.onnx", overwrite=True, external_data=True, **FAST)
    assert data.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="needs locks of folders")
def test_scratch_folders_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os; from onnxprune.scratch import Scratch; s = Scratch(); print(s.name, flush=True)"
    )
    killed = [sys.executable, "-c", f"{code}; os.kill(os.getpid(), 9)"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(killed, env=environment, capture_output=True, text=True, check=False)
    left, used = Path(done.stdout.strip()), Scratch()
    (left / "model.onnx").write_bytes(b"large")
    (tmp_path / "onnxprune-of-a-user").mkdir()
    (tmp_path / "onnxprune-link.scratch").symlink_to(tmp_path / "onnxprune-of-a-user")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    with Scratch() as new:
        assert not left.exists() and Path(used.name).is_dir() and Path(new).is_dir()
    used.cleanup()
    assert set(tree(tmp_path)) == set() and len(list(tmp_path.iterdir())) == 2


class Fault:
    """Fails the n-th call of the functions that write files."""

    NAMES = ("fsync", "replace", "chmod")

    def __init__(self, number: int) -> None:
        self.left = number

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **keywords)

        return call


def write_fails_at(number: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> bool:
    """Return whether the n-th write exists; then it was reported as an error."""
    fault = Fault(number)
    with monkeypatch.context() as patch:
        for name in Fault.NAMES:
            patch.setattr(os, name, fault.wrap(getattr(os, name)))
        try:
            work()
        except OutputError as problem:
            assert "No space left" in str(problem) and problem.code == "output-unwritable"
            return True
    assert fault.left > 0
    return False


@pytest.mark.parametrize("external", [pytest.param(False, marks=pytest.mark.slow), True])
def test_full_disk_at_any_write_keeps_output_data_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool
) -> None:
    out = tmp_path / "out.onnx"
    optimize(MODEL, out, external_data=external, target="macs=80%", **FAST)
    names = [n for n in tree(tmp_path) if "/" not in n]
    names += [f"out.run/{name}" for name in REPORT_FILES]
    before = {name: (tmp_path / name).read_bytes() for name in names}

    def work() -> None:
        optimize(MODEL, out, external_data=external, overwrite=True, target="macs=60%", **FAST)

    number = 1
    while write_fails_at(number, monkeypatch, work):
        assert {name: (tmp_path / name).read_bytes() for name in names} == before, number
        extra = {n for n in tree(tmp_path) if "/" not in n} - set(names)
        assert not extra and not list(tmp_path.rglob("*.partial")), number
        onnx.checker.check_model(str(out))
        number += 1
    assert number > 15
    onnx.checker.check_model(str(out))
    assert all((tmp_path / name).read_bytes() != before[name] for name in names if "run" in name)


def test_partial_files_of_a_killed_process_are_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from onnxprune.files import staging\n"
        "with staging() as files, files.file(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], check=False, timeout=60)
    assert len(tree(tmp_path)) == 1
    with staging() as stage, stage.file(tmp_path / "y") as file:
        file.write(b"y")
        # of a process that lives
        remove_partial_files(tmp_path)
        assert len(list(tmp_path.glob(".*.partial"))) == 1
    assert tree(tmp_path) == {"y": b"y"}
    os.mkfifo(tmp_path / ".onnxprune-a.partial")
    (tmp_path / ".onnxprune-b.partial").symlink_to(tmp_path / "y")
    remove_partial_files(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_names_of_full_length_are_written(tmp_path: Path) -> None:
    name = "n" * 250 + ".onnx"
    save(load(MODEL), tmp_path / name)
    assert set(tree(tmp_path)) == {name}


def test_failed_commit_restores_what_was_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "full").write_bytes(b"")
    stage = Staging()
    for name in "abc":
        with stage.file(tmp_path / name) as file:
            file.write(b"new")
    with pytest.raises(OutputError):
        stage.commit()
    assert tree(tmp_path) == {"a": b"old", "c/full": b""}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM])
def test_failed_commit_without_links_removes_no_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "full").write_bytes(b"")
    stage = Staging()
    for name in "ac":
        with stage.file(tmp_path / name) as file:
            file.write(b"new")
    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(OutputError):
        stage.commit()
    # a file system without links can only keep the new one
    content = b"old" if number == errno.ENOSPC else b"new"
    assert tree(tmp_path) == {"a": content, "c/full": b""}


def test_journal_line_of_a_full_disk_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_json_line(tmp_path / "j", {"a": 1})
    before = (tmp_path / "j").read_bytes()
    assert write_fails_at(1, monkeypatch, lambda: append_json_line(tmp_path / "j", {"b": 2}))
    assert (tmp_path / "j").read_bytes() == before


@pytest.mark.parametrize(
    ("output", "expected"),
    [(None, "m.pruned.onnx"), ("folder", "folder/m.pruned.onnx"), ("x.ONNX", "x.ONNX")],
)
def test_output_has_a_name(tmp_path: Path, output: str | None, expected: str) -> None:
    (tmp_path / "folder").mkdir()
    # a missing model is named before its output
    (tmp_path / "m.onnx").touch()
    path = None if output is None else tmp_path / output
    assert choose_output(path, tmp_path / "m.onnx") == tmp_path / expected


@pytest.mark.parametrize("output", ["out", "out.pt", "out.onnx.bak"])
def test_output_must_end_in_onnx(tmp_path: Path, output: str) -> None:
    with pytest.raises(UsageError, match="does not end in .onnx"):
        choose_output(tmp_path / output, MODEL)


@pytest.mark.parametrize("kind", ["same", "dots", "symlink", "hardlink", "folder"])
def test_output_must_not_be_the_input(tmp_path: Path, kind: str) -> None:
    source = tmp_path / ("m.pruned.onnx" if kind == "folder" else "m.onnx")
    source.write_bytes(MODEL.read_bytes())
    output = tmp_path / "other.onnx"
    if kind == "same":
        output = source
    elif kind == "dots":
        output = tmp_path / ".." / tmp_path.name / "m.onnx"
    elif kind == "symlink":
        output.symlink_to(source)
    elif kind == "hardlink":
        output.hardlink_to(source)
    else:
        output = source
    with pytest.raises(UsageError, match="is the input"):
        optimize(source, output, overwrite=True, **FAST)
    assert source.read_bytes() == MODEL.read_bytes()


@pytest.mark.parametrize("name", [LOCK, JOURNAL, "search.jsonl"])
def test_links_in_a_run_directory_are_not_followed(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    optimize(MODEL, tmp_path / "out.onnx", target="macs=80%", **FAST)
    run = tmp_path / "out.run"
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    options = FAST | ({"method": "pagcp"} if name == "search.jsonl" else {})
    data = np.random.default_rng(0).random((40, 1, 8, 8), np.float32)
    options["data"] = str(tmp_path / "data.npy")
    np.save(options["data"], data)
    with pytest.raises(OutputError, match="cannot write|not a run directory|no measurements"):
        optimize(MODEL, tmp_path / "out.onnx", overwrite=True, target="macs=70%", **options)
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\xfa",
        b"[" * 100_000,
        b'{"stage": 1, "key": [], "files": 3, "facts": {}, "seconds": "x"}',
        b'{"stage": "score", "key": "k", "files": {"a\\u0000b": "c"}, "facts": {}, "seconds": 1}',
        b'{"stage": "score", "key": "k", "files": {"../x": "c"}, "facts": {}, "seconds": 1}',
        b'{"stage": "score", "key": "k", "files": {"\\ud800": "c"}, "facts": {}, "seconds": 1}',
        b'{"stage": "score", "key": "k", "files": {"scores.npz": 1}, "facts": [], "seconds": 1}',
    ],
)
def test_strange_journal_is_a_fresh_start(tmp_path: Path, line: bytes) -> None:
    optimize(MODEL, tmp_path / "out.onnx", **FAST)
    before = (tmp_path / "out.onnx").read_bytes()
    journal = tmp_path / "out.run" / JOURNAL
    journal.write_bytes(line + b"\n" + journal.read_bytes() + line)
    with open_run_dir(tmp_path / "out.run") as run:
        assert run.done("score", "k") is None
    optimize(MODEL, tmp_path / "out.onnx", overwrite=True, **FAST)
    assert (tmp_path / "out.onnx").read_bytes() == before


def test_stage_file_that_matches_an_edited_journal_is_made_again(tmp_path: Path) -> None:
    optimize(MODEL, tmp_path / "out.onnx", **FAST)
    before = (tmp_path / "out.onnx").read_bytes()
    run = tmp_path / "out.run"
    rows = [json.loads(row) for row in (run / JOURNAL).read_text().splitlines()]
    for row in rows:
        for name in row["files"]:
            (run / name).write_bytes(b"[]")
            row["files"][name] = files.sha256(run / name)
    (run / JOURNAL).write_text("".join(json.dumps(row) + "\n" for row in rows))
    optimize(MODEL, tmp_path / "out.onnx", overwrite=True, **FAST)
    assert (tmp_path / "out.onnx").read_bytes() == before


def test_failing_run_removes_nothing_that_it_did_not_make(tmp_path: Path) -> None:
    with pytest.raises(ValueError), open_run_dir(tmp_path / "run", keep=False) as run:
        run.file("own").write_bytes(b"")
        (run.path / "photo.jpg").write_bytes(b"precious")
        raise ValueError
    assert tree(tmp_path) == {"run/photo.jpg": b"precious"}


def test_kill_while_the_lock_is_written_leaves_the_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimize(MODEL, tmp_path / "out.onnx", **FAST)
    truncate = os.ftruncate

    def truncate_and_end(*arguments: Any) -> None:
        truncate(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", truncate_and_end)
        with pytest.raises(KeyboardInterrupt), open_run_dir(tmp_path / "out.run"):
            pass
    with open_run_dir(tmp_path / "out.run") as run:
        assert run.entries()


@pytest.mark.parametrize("content", [b"", b"my own lock\n", b"process of baking bread"])
def test_folder_without_the_mark_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK).write_bytes(content)
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(OutputError, match="not a run directory"), open_run_dir(tmp_path):
        pass
    assert tree(tmp_path) == {LOCK: content, "photo.jpg": b"precious"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": [0.5]}, "0.5 is not an integer"),
        ({"kept": ["1"]}, "'1' is not an integer"),
        ({"kept": [True]}, "True is not an integer"),
        ({"kept": [-1]}, "-1 is not between"),
        ({"size": 8.0}, "8.0 is not an integer"),
        ({"size": 1 << 40}, "is not between"),
        ({"kepd": []}, "unknown key 'kepd'; did you mean 'kept'?"),
    ],
)
def test_plans_are_strict(change: dict[str, Any], message: str) -> None:
    plan = {"format": 1, "source": "", "groups": {"a": {"size": 8, "kept": [0, 1]}}}
    assert Plan.from_json(plan).kept == {"a": (0, 1)}
    plan["groups"] = {"a": {"size": 8, "kept": [0, 1], **change}}
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        Plan.from_json(plan)


@pytest.mark.parametrize("place", ["plan", "options"])
def test_unknown_keys_of_plans_are_errors(place: str) -> None:
    plan: dict[str, Any] = {"format": 1, "source": "", "groups": {}}
    with pytest.raises(UsageError, match="did you mean"):
        if place == "plan":
            Plan.from_json({**plan, "option": {}})
        else:
            analyze_for_plan(MODEL, Plan.from_json({**plan, "options": {"freez": []}}))


def test_existing_output_of_another_recipe_is_refused_before_the_model_is_loaded(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out.onnx"
    optimize(MODEL, out, target="macs=80%", **FAST)
    events: list[Event] = []
    with pytest.raises(OutputError, match="exists; pass --overwrite"):
        optimize(MODEL, out, target="macs=70%", on_event=events.append, **FAST)
    assert not events
    # the same command, and the recipe that it wrote, repeat the run
    optimize(MODEL, out, target="macs=80%", **FAST)
    optimize(MODEL, out, recipe=tmp_path / "out.run" / "recipe.toml")
