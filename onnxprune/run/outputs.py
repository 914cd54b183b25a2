"""Where results go, and whether they can: asked before any work is done."""

from __future__ import annotations

import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from onnxprune.errors import OutputError
from onnxprune.files import sha256
from onnxprune.run.rundir import Entry, RunDir

PathLike = str | os.PathLike[str]
_LIBRARIES = ("onnxprune", "numpy", "scipy", "onnx", "onnxruntime")


def default_output(model: PathLike) -> Path:
    """MODEL.pruned.onnx beside the model."""
    return Path(model).with_suffix(".pruned.onnx")


def default_run_dir(output: PathLike) -> Path:
    """The output's name with `.run`, beside it."""
    return Path(output).with_suffix(".run")


def check_output(
    output: PathLike, overwrite: bool, run_dir: Path | None = None, external_data: bool = False
) -> bool:
    """Whether the output may be written over; checked by writing a temporary file beside it.

    An output that the journal in `run_dir` says to be its own passes for now; `check_same` decides when it is known what this run will write.

    Raises
    ------
    OutputError
        It exists and may not be replaced, or its folder cannot be written.
    """
    output = Path(output)
    if output.exists() and not output.is_file():
        raise OutputError(
            "output-unwritable",
            f"{output} is {'a folder' if output.is_dir() else 'not a regular file'}; give the path "
            "of the file to write",
        )
    taken = [
        p
        for p in (output, output.with_name(output.name + ".data"))[: 1 + external_data]
        if p.exists()
    ]
    if taken and not overwrite and not (run_dir and _last_written(RunDir(run_dir), output)):
        raise _exists(taken[0])
    for folder in {output.parent, run_dir.parent if run_dir else output.parent}:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as problem:
            raise OutputError(
                "output-unwritable", f"cannot write into {folder}: {problem.strerror}"
            ) from problem
    return overwrite


def versions() -> dict[str, str]:
    """What the result depends on beside its inputs."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = ""
    return found


def check_same(output: Path, overwrite: bool, run: RunDir | None, run_key: str) -> bool:
    """Whether the output may be written over, now that the run is known by its key: yes where it is what the same run wrote before,
    finished or killed right after; nothing is lost then.

    Raises
    ------
    OutputError
        It exists, and another run or somebody else made it.
    """
    if overwrite or not output.exists():
        return overwrite
    last = _last_written(run, output) if run else None
    if (
        last
        and last.facts.get("run") == run_key
        and (last.stage == "write" or last.facts.get("sha256") == sha256(output))
    ):
        return True
    raise _exists(output)


def _last_written(run: RunDir, output: Path) -> Entry | None:
    """The journal's last line, if it says that this output will be written now ("write") or has been ("report")."""
    entries = run.entries()
    return (
        entries[-1]
        if entries
        and entries[-1].stage in ("write", "report")
        and entries[-1].facts.get("output") == str(output)
        else None
    )


def _exists(path: Path) -> OutputError:
    return OutputError(
        "output-exists", f"{path} exists; pass --overwrite (overwrite=True) to replace it"
    )
