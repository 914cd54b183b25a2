"""What the run scripts of all bundles share. Standard library only; Python 3.8 or newer."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def fail(message: str) -> Any:
    """Say what is wrong in one sentence and stop."""
    sys.stderr.write("error: " + message + "\n")
    raise SystemExit(1)


def say(message: str) -> None:
    """Progress, to stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def manifest() -> dict[str, Any]:
    """manifest.json of this bundle."""
    try:
        return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        return fail(
            f"manifest.json beside this script cannot be read ({problem}); copy the whole folder"
        )


def verified() -> dict[str, Any]:
    """The manifest, after every file was compared with its hash."""
    found = manifest()
    for name, digest in sorted(found["files"].items()):
        path = FOLDER / name
        if not path.is_file():
            fail(f"{name} is missing from the bundle; copy the whole folder")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            fail(f"{name} differs from the manifest; copy the folder again")
    return found


def arguments(description: str, found: dict[str, Any]) -> argparse.ArgumentParser:
    """A parser that knows the bundle's options; the manifest has their defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--results",
        default=str(FOLDER / "results"),
        help="folder for logs and reports (default: results beside this script)",
    )
    for name, value in found["options"].items():
        parser.add_argument("--" + name, default=value, help="default: %(default)s")
    return parser


def start(description: str) -> tuple[dict[str, Any], argparse.Namespace, Path]:
    """(manifest, arguments, results folder) of a run."""
    found = verified()
    chosen = arguments(description, found).parse_args()
    results = Path(chosen.results)
    results.mkdir(parents=True, exist_ok=True)
    return found, chosen, results


def tool(name: str, how: str, *places: str) -> str:
    """Path of a command, on PATH or at one of `places`."""
    path = find(name, *places)
    return path if path else fail(f"{name} is not on this machine: {how}")


def find(name: str, *places: str) -> str | None:
    """Path of a command, or None."""
    for place in places:
        if os.access(place, os.X_OK):
            return place
    return shutil.which(name)


def module(name: str, how: str) -> Any:
    """An importable package."""
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        if getattr(problem, "name", None) not in (None, name.split(".")[0], name):
            return fail(f"{name} is installed and does not import: {problem}")
        return fail(f"Python package {name} is not in this environment: {how}")


def run(
    command: Sequence[Any],
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> int:
    """Run a command with its output in a log; its exit status."""
    command = [str(part) for part in command]
    say("$ " + " ".join(command))
    with open(str(log), "w", encoding="utf-8") as file:
        file.write("$ " + " ".join(command) + "\n")
        file.flush()
        try:
            status = subprocess.call(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
            )
        except OSError as problem:
            fail(f"{command[0]} cannot be started: {problem.strerror}")
    if status and check:
        lines = Path(log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        fail(
            f"{Path(command[0]).name} ended with status {status}: {lines[-1][:200]} (all of it in {log})"
        )
    return status


def output(command: Sequence[Any]) -> str:
    """What a command prints, "" where it is missing or fails."""
    try:
        done = subprocess.run(
            [str(c) for c in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    temporary = str(path) + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    os.replace(temporary, str(path))


def models(found: dict[str, Any]) -> dict[str, Path]:
    """Name -> path of the bundle's models."""
    return {name: FOLDER / entry["file"] for name, entry in found["models"].items()}
