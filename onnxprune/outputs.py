"""Where results go, and whether they can: asked before any work is done."""

from __future__ import annotations

import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from onnxprune.errors import OutputError
from onnxprune.rundir import RunDir

PathLike = str | os.PathLike[str]
_LIBRARIES = ("onnxprune", "numpy", "scipy", "onnx", "onnxruntime")


def default_output(model: PathLike) -> Path:
    """MODEL.pruned.onnx beside the model."""
    return Path(model).with_suffix(".pruned.onnx")


def default_run_dir(output: PathLike) -> Path:
    """The output's name with `.run`, beside it."""
    return Path(output).with_suffix(".run")


def check_output(output: PathLike, overwrite: bool, run_dir: Path | None = None, external_data: bool = False) -> bool:
    """Whether the output may be written over; checked by writing a temporary file beside it.

    An output that is there because a run was killed right after writing it, as its journal in `run_dir` says, may be.

    Raises
    ------
    OutputError
        It exists and may not be replaced, or its folder cannot be written.
    """
    output = Path(output)
    if output.exists() and not output.is_file():
        raise OutputError("output-unwritable", f"{output} is {'a folder' if output.is_dir() else 'no regular file'}; name the file to write")
    taken = [p for p in (output, output.with_name(output.name + ".data"))[: 1 + external_data] if p.exists()]
    overwrite = overwrite or _was_coming(output, run_dir)
    if taken and not overwrite:
        raise OutputError("output-exists", f"{taken[0]} exists; pass --overwrite (overwrite=True) to replace it")
    for folder in {output.parent, run_dir.parent if run_dir else output.parent}:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as problem:
            raise OutputError("output-unwritable", f"cannot write into {folder}: {problem.strerror}") from problem
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


def _was_coming(output: Path, run_dir: Path | None) -> bool:
    """The last that the journal says is that this output will be written now."""
    entries = RunDir(run_dir).entries() if run_dir else []
    return bool(entries) and entries[-1].stage == "write" and entries[-1].facts.get("output") == str(output)
