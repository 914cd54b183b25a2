"""Resolve output paths and check that they are writable before any work starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from onnxprune.errors import OutputError, UsageError
from onnxprune.files import sha256
from onnxprune.ir.file_kinds import KINDS, check_place
from onnxprune.ir.io import explain_existing
from onnxprune.run.rundir import JournalEntry, RunDir

PathLike = str | os.PathLike[str]
PRUNED = ".pruned.onnx"
SPACE_FACTOR = 2  # the output, and the repaired model in the run directory


def choose_output(
    output: PathLike | None, model: object, suffix: str = PRUNED, *, reads: Iterable[PathLike] = ()
) -> Path:
    """Return the path of the model to write.

    Parameters
    ----------
    output
        Path of the file, or a folder to put it into; None for the folder of the model.
    model
        What the user named as the model; the file is named after it, if it is a path.
    suffix
        End of the file's name if it is not given.
    reads
        Other files that the command reads.

    Raises
    ------
    UsageError
        The path does not end in .onnx, or is a file that the command reads.
    """
    source = Path("model.onnx")
    if isinstance(model, str | os.PathLike):
        source = Path(model)
        # a missing model is named before the folder of its output, which may be missing as well
        check_place(source)
    if output is None:
        # with its longer suffix, this path cannot be the model's
        return source.with_suffix(suffix)
    path = Path(output)
    if path.is_dir():
        path = path / source.with_suffix(suffix).name
    elif path.suffix.lower() != ".onnx":
        # small.pt becomes small.onnx, but small.v2 small.v2.onnx
        stem = path.with_suffix("") if path.suffix.lower() in KINDS else path
        raise UsageError(
            "output-suffix", f"the output {path} does not end in .onnx; write {stem}.onnx"
        )
    check_not_read(path, (source, *reads))
    return path


def check_not_read(output: PathLike, reads: Iterable[PathLike]) -> None:
    """Raise UsageError if a file to write is one that the command reads, by whatever name."""
    for path in map(Path, reads):
        # a path that does not exist, or that the system cannot encode, is no input
        with contextlib.suppress(OSError, ValueError):
            if os.path.samefile(output, path):
                raise UsageError(
                    "output-is-input", f"the output {output} is the input {path}; choose another -o"
                )


def default_run_dir(output: PathLike) -> Path:
    """Return the output's path with the suffix `.run`."""
    return Path(output).with_suffix(".run")


def check_output(
    output: PathLike, overwrite: bool, run_dir: Path | None = None, recipe_key: str = ""
) -> bool:
    """Check that the output can be written, and return whether it may replace an existing one.

    An existing output that the journal in `run_dir` lists as its own passes this check, unless it
    is of another recipe; once the run is known by its key, `check_same` decides.

    Parameters
    ----------
    recipe_key
        Key of the recipe as it was given.

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
    if not overwrite:
        _check_new(output, run_dir, recipe_key)
    # write to test it, since permissions do not show read-only file systems
    for folder in {output.parent, run_dir.parent if run_dir else output.parent}:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as problem:
            advice = "choose another folder" if folder.exists() else f"first: mkdir -p {folder}"
            raise OutputError(
                "output-unwritable", f"cannot write into {folder}: {problem.strerror}; {advice}"
            ) from problem
    return overwrite


def check_space(output: PathLike | None, model_bytes: int) -> None:
    """Check that the folder of the output has space for the model and the results of stages.

    Raises
    ------
    OutputError
        There is less than SPACE_FACTOR times the size of the original.
    """
    if output is None:
        return
    folder = Path(output).resolve().parent
    needed, free = SPACE_FACTOR * model_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            "output-space",
            f"{folder} has {free / 1e6:.0f} MB free, a run writes up to {needed / 1e6:.0f} MB: "
            "free some space, or choose another folder by -o",
        )


def check_same(output: Path, overwrite: bool, run: RunDir | None, run_key: str) -> bool:
    """Return whether the output may replace an existing one, given the key of the run.

    It may if the same run wrote it before: then nothing is lost.

    Raises
    ------
    OutputError
        It exists, and something else than this run wrote it.
    """
    if overwrite or not output.exists():
        return overwrite
    entry = _find_last_write(run, output) if run else None
    if entry is None or entry.facts.get("run") != run_key:
        raise explain_existing(output)
    # recorded before the output is written, which a kill can prevent
    if entry.facts.get("sha256") != sha256(output):
        raise explain_existing(output)
    return True


def _check_new(output: Path, run_dir: Path | None, recipe_key: str) -> None:
    """Raise OutputError if the output exists, unless it is that of the run directory."""
    if not output.exists():
        return
    entry = _find_last_write(RunDir(run_dir), output) if run_dir else None
    # runs of earlier releases have no keys of recipes
    if entry is None or recipe_key not in entry.facts.get("recipes", (recipe_key,)):
        raise explain_existing(output)


def _find_last_write(run: RunDir, output: Path) -> JournalEntry | None:
    """Return the journal's last entry if it is about writing this output."""
    # an entry after "report" is of another run, whose output this file is not
    entries = run.entries()
    if not entries or entries[-1].stage != "report":
        return None
    return entries[-1] if entries[-1].facts.get("output") == str(output) else None
