"""Run directories: reuse of finished stages, locks, interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from onnxprune.errors import OutputError
from onnxprune.files import hash_key, write_bytes
from onnxprune.run.rundir import JOURNAL, open_run_dir


def test_stage_is_reused_only_with_equal_key_and_files(tmp_path) -> None:
    with open_run_dir(tmp_path / "run") as run:
        write_bytes(run.file("scores"), b"abc")
        run.record("score", "k1", 1.5, ["scores"], {"n": 3})
    with open_run_dir(tmp_path / "run") as run:
        found = run.done("score", "k1")
        assert found is not None and found.facts == {"n": 3} and found.seconds == 1.5
        assert run.done("score", "k2") is None and run.done("plan", "k1") is None
        run.file("scores").write_bytes(b"abd")
        assert run.done("score", "k1") is None
        run.file("scores").unlink()
        assert run.done("score", "k1") is None


@pytest.mark.parametrize("cut", [1, 10, -2])
def test_truncated_journal_line_is_ignored_and_harms_no_other(tmp_path, cut: int) -> None:
    with open_run_dir(tmp_path / "run") as run:
        run.record("score", "k1", 1)
        whole = run.file(JOURNAL).read_bytes()
        run.file(JOURNAL).write_bytes(whole + whole.replace(b"k1", b"k2")[:cut])
        assert run.done("score", "k1") and not run.done("score", "k2")
        run.record("plan", "k3", 1)
        assert run.done("score", "k1") and run.done("plan", "k3")


def test_lock_rejects_second_process_and_ends_with_a_killed_one(tmp_path) -> None:
    code = (
        "import sys, time; from onnxprune.run.rundir import open_run_dir\n"
        "with open_run_dir(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with (
        pytest.raises(OutputError, match=f"in use by process {holder.pid} ") as caught,
        open_run_dir(tmp_path / "run"),
    ):
        pass
    assert caught.value.code == "run-dir-busy"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    (tmp_path / "run" / ".onnxprune-x1.partial").write_bytes(b"half")
    with open_run_dir(tmp_path / "run") as run:
        assert not list(run.path.glob(".*"))


def test_failed_run_leaves_no_directory_but_interrupted_run_does(tmp_path) -> None:
    with pytest.raises(ValueError), open_run_dir(tmp_path / "new", keep=False):
        raise ValueError
    assert not (tmp_path / "new").exists()
    with pytest.raises(KeyboardInterrupt), open_run_dir(tmp_path / "new", keep=False):
        raise KeyboardInterrupt
    with pytest.raises(ValueError), open_run_dir(tmp_path / "new", keep=False):
        raise ValueError
    assert (tmp_path / "new").exists()


def test_full_disk_does_not_hide_the_error_of_a_run(tmp_path) -> None:
    """Closing the lock must not try again to write what the disk did not take."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(ValueError, match="of the run"), open_run_dir(tmp_path / "a.run"):
            raise ValueError("of the run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_foreign_folder_is_not_touched(tmp_path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(OutputError, match="not a run directory"), open_run_dir(tmp_path):
        pass
    with pytest.raises(OutputError, match="cannot use"), open_run_dir(tmp_path / "photo.jpg"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_key_depends_on_values_not_on_order() -> None:
    assert hash_key({"a": 1, "b": 2}) == hash_key({"b": 2, "a": 1}) != hash_key({"a": 1, "b": 3})
    assert len(json.dumps(hash_key(None))) == 66
