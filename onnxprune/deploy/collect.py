"""Read what a bundle's run reported, after copying it by hand or running it by ssh."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.deploy import TARGETS
from onnxprune.deploy.bundle import HandoffTarget, TargetResult
from onnxprune.errors import DataError, EngineError, UsageError
from onnxprune.files import read_text, sha256

FORMAT = 1
MANIFEST = "manifest.json"
# no colons, slashes or spaces, which scp and the shell of the host would interpret
_HOST = re.compile(r"[\w.][\w.-]*(@[\w.][\w.-]*)?")


@dataclass(frozen=True)
class Collected:
    """Results of a bundle's run.

    Attributes
    ----------
    target
        Name of the target.
    results
        Model name -> figures.
    environment
        What run.py wrote about the machine.
    ratios
        Figure -> original / pruned, for figures of both models with a finite ratio.
    """

    target: str
    results: Mapping[str, TargetResult]
    environment: Mapping[str, Any] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a report."""
        return {
            "target": self.target,
            "environment": dict(self.environment),
            "ratios": dict(self.ratios),
            "results": {name: asdict(result) for name, result in self.results.items()},
        }


def collect(folder: str | Path) -> Collected:
    """Read the results folder of a bundle.

    Raises
    ------
    DataError
        The folder is not a bundle, or its results are missing or invalid.
    """
    folder = Path(folder)
    # the manifest of this machine decides which models count, not the files that came back
    manifest = read_manifest(folder)
    target: HandoffTarget = TARGETS.get(manifest["target"])
    results_folder = folder / "results"
    if not results_folder.is_dir():
        raise DataError(
            "results-missing",
            f"{folder} has no results yet: run python3 run.py in it on the target's machine, "
            "then copy its results folder back",
        )
    results = {name: target.parse(results_folder, name) for name in manifest["models"]}
    try:
        text = read_text(results_folder / "environment.json", "replace")
        environment = json.loads(text)
    # only additional facts: figures are valid without them
    except (OSError, ValueError, RecursionError):
        environment = {}
    return Collected(target.name, results, environment, _compute_ratios(results))


def round_trip(
    folder: str | Path,
    host: str,
    *,
    timeout_s: float = 3600.0,
    python: str = "python3",
    keep: bool = False,
) -> Collected:
    """Copy a bundle to a host by scp, run it there by ssh, copy the results back and read them.

    Parameters
    ----------
    host
        "name" or "user@name", as for ssh; login must work with keys, without a password prompt.
    timeout_s
        Limit of each step.
    python
        Interpreter on the host.
    keep
        Keep the folder on the host.

    Raises
    ------
    UsageError
        `host` is not a host name.
    EngineError
        ssh or scp is missing or fails; its last line is quoted.
    """
    folder = Path(folder)
    # a name that starts with "-" would be read as an option of ssh
    if not _HOST.fullmatch(host):
        raise UsageError("host", f"{host!r} is not a host; use NAME or USER@NAME")
    # fails early if the folder is not a bundle
    read_manifest(folder)
    # the same bundle gets the same folder, so that a repeated run overwrites it
    remote = f"onnxprune-{sha256(folder / MANIFEST)[:12]}"
    # no prompt: a program that waits for a password would hang
    quiet = ["-o", "BatchMode=yes"]
    ssh, scp = ["ssh", *quiet, host, "--"], ["scp", *quiet, "-q", "-r"]
    _run_remote([*scp, str(folder), f"{host}:{remote}"], timeout_s, "copy the bundle")
    try:
        # a name of letters, digits and a dash needs no quotes for the shell of the host
        _run_remote([*ssh, f"cd {remote} && {python} run.py"], timeout_s, "run the bundle")
        results = f"{host}:{remote}/results"
        _run_remote([*scp, results, str(folder)], timeout_s, "copy the results back")
    finally:
        if not keep:
            # failing to clean up must not hide the results
            _run_remote([*ssh, f"rm -rf {remote}"], timeout_s, "remove the bundle", check=False)
    return collect(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a bundle's manifest; DataError if it is missing or invalid."""
    try:
        manifest = json.loads(read_text(folder / MANIFEST, "replace"))
        # raised and caught here: all invalid manifests get one message
        if manifest["format"] != FORMAT:
            raise ValueError(f"format is {manifest['format']!r}, {FORMAT} is supported")
        if not isinstance(manifest["models"], dict) or not isinstance(manifest["target"], str):
            raise ValueError("models or target have a wrong type")
        # names become parts of paths in the results folder
        unexpected = [n for n in manifest["models"] if n not in ("original", "pruned")]
        if unexpected:
            raise ValueError(f"unknown model {unexpected[0]!r}")
        return dict(manifest)
    except OSError as problem:
        raise DataError(
            "bundle-missing",
            f"{folder} is not a bundle: {MANIFEST} cannot be read ({problem.strerror})",
        ) from problem
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise DataError(
            "bundle-invalid", f"{folder} is not a bundle: {MANIFEST} is invalid: {problem}"
        ) from problem


def _run_remote(command: list[str], timeout_s: float, purpose: str, check: bool = True) -> None:
    """Run ssh or scp; EngineError if it fails."""
    if shutil.which(command[0]) is None:
        raise EngineError(
            "ssh-missing", f"{command[0]} is not on PATH: install an OpenSSH client to {purpose}"
        )
    try:
        # without stdin: ssh would read what was meant for this process
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as problem:
        raise EngineError(
            "ssh-timeout", f"{command[0]} did not {purpose} within {timeout_s:g} s"
        ) from problem
    if check and done.returncode:
        # the last line has the reason; banners of the host come first
        lines = (done.stderr or done.stdout).strip().splitlines()
        last = lines[-1][:300] if lines else "no message"
        raise EngineError(
            "ssh-failed",
            f"could not {purpose}: {command[0]} exited with status {done.returncode}: {last}",
        )


def _compute_ratios(results: Mapping[str, TargetResult]) -> dict[str, float]:
    """Return original / pruned per figure, without those that are missing, 0 or not finite."""
    # a bundle may hold one model only
    if not {"original", "pruned"} <= set(results):
        return {}
    original, pruned = results["original"].figures, results["pruned"].figures
    return {
        name: original[name] / pruned[name]
        for name in original
        if pruned.get(name) and np.isfinite([original[name], pruned[name]]).all()
    }
