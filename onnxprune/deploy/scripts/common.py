"""Helpers that the run scripts of all bundles share. Standard library only; Python 3.8 or newer."""

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
    """Print an error and exit with status 1."""
    sys.stderr.write("error: " + message + "\n")
    raise SystemExit(1)


def say(message: str) -> None:
    """Print progress to stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def finish(results: Path) -> None:
    """Print what to do with the results."""
    say(f"done; copy {results} back and run: onnxprune bench --collect FOLDER")


def read_manifest() -> dict[str, Any]:
    """Return manifest.json of this bundle."""
    try:
        return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        return fail(f"manifest.json cannot be read ({problem}); copy the complete folder")


def verify_files() -> dict[str, Any]:
    """Return the manifest after comparing every file of the bundle with its hash."""
    manifest = read_manifest()
    for name, digest in sorted(manifest["files"].items()):
        path = FOLDER / name
        if not path.is_file():
            fail(f"{name} is missing from the bundle; copy the complete folder")
        # a copy over a network may be incomplete
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            fail(f"sha256 of {name} differs from the manifest; copy the folder again")
    return manifest


def make_parser(description: str, manifest: dict[str, Any]) -> argparse.ArgumentParser:
    """Return a parser of the bundle's options; the manifest holds their defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--results",
        default=str(FOLDER / "results"),
        help="folder for logs and reports (default: results next to this script)",
    )
    for name, value in manifest["options"].items():
        parser.add_argument("--" + name, default=value, help="default: %(default)s")
    return parser


def start(description: str) -> tuple[dict[str, Any], argparse.Namespace, Path]:
    """Check the bundle and return (manifest, arguments, results folder) of a run."""
    manifest = verify_files()
    chosen = make_parser(description, manifest).parse_args()
    results = Path(chosen.results)
    results.mkdir(parents=True, exist_ok=True)
    return manifest, chosen, results


def tool(name: str, how: str, *places: str) -> str:
    """Return the path of a command at one of `places` or on PATH; exit with `how` if missing."""
    path = find(name, *places)
    return path if path else fail(f"{name} is not installed on this machine: {how}")


def find(name: str, *places: str) -> str | None:
    """Return the path of a command at one of `places` or on PATH, else None."""
    for place in places:
        if os.access(place, os.X_OK):
            return place
    return shutil.which(name)


def module(name: str, how: str) -> Any:
    """Import a package; exit with `how` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        # a missing dependency of the package must not be reported as a missing package
        if getattr(problem, "name", None) not in (None, name.split(".")[0], name):
            return fail(f"Python package {name} is installed but cannot be imported: {problem}")
        return fail(f"Python package {name} is not installed in this environment: {how}")


def run(
    command: Sequence[Any],
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> int:
    """Run a command, write its output to `log` and return its exit status."""
    # callers pass paths and numbers too
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
        # the last line usually holds the reason
        lines = Path(log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        program = Path(command[0]).name
        fail(f"{program} exited with status {status}: {lines[-1][:200]} (full log: {log})")
    return status


def output(command: Sequence[Any]) -> str:
    """Return what a command prints, "" if it is missing or fails."""
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
    """Write JSON atomically, so that no other process reads a partial file."""
    temporary = str(path) + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    os.replace(temporary, str(path))


def models(manifest: dict[str, Any]) -> dict[str, Path]:
    """Return the paths of the bundle's models by name."""
    return {name: FOLDER / entry["file"] for name, entry in manifest["models"].items()}
