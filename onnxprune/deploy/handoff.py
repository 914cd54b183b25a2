"""Bundles: a folder that holds all that a target's machine needs, and the way back of what that machine reported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import onnxprune
from onnxprune.deploy.bundle import (
    SEVERITIES,
    Check,
    HandoffTarget,
    PreparedModel,
    TargetResult,
    check,
    find_foreign_ops,
    prepare,
    script,
)
from onnxprune.errors import DataError, EngineError, OutputError, UsageError, unknown
from onnxprune.files import sha256, write_bytes, write_json
from onnxprune.ir.io import Model, digest, save
from onnxprune.ir.runtime import Session
from onnxprune.registry import Registry

FORMAT = 1
MANIFEST = "manifest.json"
INVENTED = 8  # runs with random inputs where none are given
SAMPLES = 200  # inputs that go along for a comparison of outputs
_HOST = re.compile(r"[\w.][\w.-]*(@[\w.][\w.-]*)?")

TARGETS = Registry(
    "hand-off target",
    "onnxprune.handoff",
    {
        "jetson": (
            "onnxprune.deploy.jetson:TARGET",
            "NVIDIA Jetson: TensorRT 8 to 11 by trtexec or Python, power by tegrastats; DLA check list",
        ),
        "hls4ml": (
            "onnxprune.deploy.targets.hls4ml:TARGET",
            "hls4ml: C++ simulation with g++, synthesis where Vitis HLS is",
        ),
        "nngen": (
            "onnxprune.deploy.targets.nngen:TARGET",
            "NNgen: Verilog, clock cycles by Icarus Verilog",
        ),
        "finn": (
            "onnxprune.deploy.targets.finn:TARGET",
            "FINN: dataflow accelerator, folding configuration included",
        ),
        "vitis-ai": (
            "onnxprune.deploy.targets.vitis_ai:TARGET",
            "AMD Vitis AI: DPUCZDX8G, quantize and compile",
        ),
        "gemmini": (
            "onnxprune.deploy.targets.gemmini:TARGET",
            "Gemmini: onnxruntime-riscv under spike or FireSim",
        ),
        "vela": (
            "onnxprune.deploy.targets.vela:TARGET",
            "Arm Ethos-U: int8 TFLite by onnx2tf, compiled by Vela",
        ),
    },
)


@dataclass(frozen=True)
class HandoffBundle:
    """A written bundle. checks: model name -> what the target says of its nodes; files: relative paths."""

    folder: Path
    target: str
    checks: Mapping[str, tuple[Check, ...]]
    files: tuple[str, ...]

    def count(self, model: str) -> dict[str, int]:
        """Checks by severity."""
        return {s: sum(c.severity == s for c in self.checks[model]) for s in SEVERITIES}


@dataclass(frozen=True)
class Collected:
    """What came back. ratios: figure -> original / pruned, where both reported it and the pruned one's is not 0."""

    target: str
    results: Mapping[str, TargetResult]
    environment: Mapping[str, Any] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            "target": self.target,
            "environment": dict(self.environment),
            "ratios": dict(self.ratios),
            "results": {n: asdict(r) for n, r in self.results.items()},
        }


def handoff(
    original: Model,
    pruned: Model | None,
    to: str,
    folder: str | Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    options: Mapping[str, str] | None = None,
    samples: Mapping[str, np.ndarray] | None = None,
    overwrite: bool = False,
) -> HandoffBundle:
    """Write the bundle of a target.

    Parameters
    ----------
    original, pruned
        The models to compare; `pruned` may be None.
    shapes
        Input name -> shape, for inputs with free axes; a free first axis is a batch of 1.
    options
        The target's own choices (`Target.options`), all as text.
    samples
        Input name -> array (n, ...): inputs that go along with onnxruntime's outputs, for flows that simulate. Without them seeded
        uniform numbers are taken.

    Raises
    ------
    UsageError
        No such target or option.
    OutputError
        The folder exists and `overwrite` is not set, or it is not a bundle.
    """
    target: HandoffTarget = TARGETS.get(to)
    chosen = choose(target, options or {})
    models = [
        prepare(m, name, target, shapes)
        for name, m in (("original", original), ("pruned", pruned))
        if m is not None
    ]
    inputs = models[0].inputs()
    if samples is not None and set(samples) != set(inputs):
        raise DataError(
            "data-names",
            f"samples are for {', '.join(sorted(samples))}, the model's inputs are {', '.join(sorted(inputs))}",
        )
    checks = {m.name: check(m, target) for m in models}
    files = dict(target.files(models, chosen, samples)) if target.files else {}
    files |= {
        "run.py": script(target.script),
        "common.py": script("common"),
        "README.txt": _readme(target, chosen).encode(),
    }
    folder = Path(folder)
    _refuse_to_replace(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        (made / "models").mkdir(parents=True)
        for m in models:
            save(m.model, made / "models" / f"{m.name}.onnx")
        _write_samples(made, models, samples)
        for name, data in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(made / name, data)
        write_json(
            made / "checks.json", {n: [asdict(c) for c in found] for n, found in checks.items()}
        )
        names = _write_manifest(
            made, target, models, chosen, {"original": original, "pruned": pruned}
        )
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(made, folder)
    return HandoffBundle(folder, to, checks, names)


def choose(target: HandoffTarget, given: Mapping[str, str]) -> dict[str, str]:
    """The target's options with defaults filled in; UsageError for an unknown name or value."""
    for name, value in given.items():
        if name not in target.options:
            raise unknown(f"{target.name} option", name, target.options)
        choices = target.options[name].choices
        if choices and value not in choices:
            raise UsageError(
                "option-value",
                f"{target.name} option {name}={value!r} is none of {', '.join(choices)}",
            )
    return {name: str(given.get(name, option.default)) for name, option in target.options.items()}


def collect(folder: str | Path) -> Collected:
    """Read what a bundle's run left in its results folder.

    Raises
    ------
    DataError
        Not a bundle, or its results are missing or broken.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    target: HandoffTarget = TARGETS.get(manifest["target"])
    results = folder / "results"
    if not results.is_dir():
        raise DataError(
            "results-missing",
            f"{folder} has no results yet: run python3 run.py in it on the target's machine, and copy it back",
        )
    found = {name: target.parse(results, name) for name in manifest["models"]}
    try:
        environment = json.loads(
            (results / "environment.json").read_text(encoding="utf-8", errors="replace")
        )
    except (OSError, ValueError):
        environment = {}
    return Collected(target.name, found, environment, _ratios(found))


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
        "name" or "user@name", as ssh takes it; keys have to be set up, no password is asked for.
    keep
        Leave the folder on the host.

    Raises
    ------
    EngineError
        ssh or scp is missing or fails; its last line is quoted.
    """
    folder = Path(folder)
    if not _HOST.fullmatch(host):
        raise UsageError("host", f"{host!r} is not a host; expected name or user@name")
    read_manifest(folder)
    remote = f"onnxprune-{sha256(folder / MANIFEST)[:12]}"
    quiet = ["-o", "BatchMode=yes"]
    ssh = ["ssh", *quiet, host, "--"]
    _remote(
        ["scp", *quiet, "-q", "-r", str(folder), f"{host}:{remote}"], timeout_s, "copy the bundle"
    )
    try:
        _remote([*ssh, f"cd {remote} && {python} run.py"], timeout_s, "run the bundle")
        _remote(
            ["scp", *quiet, "-q", "-r", f"{host}:{remote}/results", str(folder)],
            timeout_s,
            "copy the results back",
        )
    finally:
        if not keep:
            _remote([*ssh, f"rm -rf {remote}"], timeout_s, "remove the bundle", check=False)
    return collect(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """A bundle's manifest; DataError where there is none."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8", errors="replace"))
        if (
            found["format"] != FORMAT
            or not isinstance(found["models"], dict)
            or not isinstance(found["target"], str)
        ):
            raise ValueError(f"format {found['format']!r}")
        if strange := [n for n in found["models"] if n not in ("original", "pruned")]:
            raise ValueError(f"model {strange[0]!r}")
        return dict(found)
    except OSError as problem:
        raise DataError(
            "bundle-missing",
            f"{folder} is not a bundle: {MANIFEST} cannot be read ({problem.strerror})",
        ) from problem
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise DataError(
            "bundle-invalid", f"{folder / MANIFEST} is not a bundle's manifest: {problem}"
        ) from problem


def _remote(command: list[str], timeout_s: float, purpose: str, check: bool = True) -> None:
    """Run ssh or scp."""
    if shutil.which(command[0]) is None:
        raise EngineError(
            "ssh-missing", f"{command[0]} is not on PATH: install an OpenSSH client to {purpose}"
        )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as problem:
        raise EngineError("ssh-timeout", f"could not {purpose} within {timeout_s:g} s") from problem
    if check and done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        last = lines[-1][:300] if lines else "no message"
        raise EngineError(
            "ssh-failed", f"could not {purpose}: {command[0]} ended with {done.returncode}: {last}"
        )


def _ratios(found: Mapping[str, TargetResult]) -> dict[str, float]:
    """Original / pruned by figure."""
    if not {"original", "pruned"} <= set(found):
        return {}
    a, b = found["original"].figures, found["pruned"].figures
    return {k: a[k] / b[k] for k in a if b.get(k) and np.isfinite([a[k], b[k]]).all()}


def _refuse_to_replace(folder: Path, overwrite: bool) -> None:
    """OutputError where something is in the way."""
    if not folder.exists():
        return
    if not overwrite:
        raise OutputError(
            "output-exists", f"{folder} exists; pass --overwrite (overwrite=True) to replace it"
        )
    if not folder.is_dir() or any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise OutputError(
            "output-not-a-bundle",
            f"{folder} is not a bundle and is not replaced; choose another folder",
        )


def _write_samples(
    folder: Path, models: Sequence[PreparedModel], samples: Mapping[str, np.ndarray] | None
) -> None:
    """inputs.npz, and onnxruntime's outputs of each model that it can run in expected_NAME.npz; arrays (n, ...), one sample a row."""
    samples = models[0].random_samples(INVENTED) if samples is None else samples
    taken = {
        n: np.asarray(a)[: max(SAMPLES, *models[0].inputs()[n][:1])] for n, a in samples.items()
    }
    _save_arrays(folder / "inputs.npz", taken)
    for m in models:
        if find_foreign_ops(m.model):
            continue
        session = Session(m.model)
        kinds = {n: _NUMPY.get(kind, np.float32) for n, (_, kind) in session.inputs.items()}
        rows = [
            session.run({n: a.astype(kinds[n]) for n, a in feeds.items()})
            for feeds in m.feeds(taken)
        ]
        outputs = {
            f"output_{j}": np.concatenate([r[o] for r in rows])
            for j, o in enumerate(session.outputs)
        }
        _save_arrays(folder / f"expected_{m.name}.npz", outputs)


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz; equal arrays give equal bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(name + ".npy"), "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def _write_manifest(
    folder: Path,
    target: HandoffTarget,
    models: Sequence[PreparedModel],
    options: Mapping[str, str],
    sources: Mapping[str, Model | None],
) -> tuple[str, ...]:
    """Hashes of everything else; the names."""
    names = tuple(
        sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    )
    write_json(
        folder / MANIFEST,
        {
            "format": FORMAT,
            "target": target.name,
            "onnxprune": onnxprune.__version__,
            "models": {
                m.name: {
                    "file": f"models/{m.name}.onnx",
                    "source_sha256": digest(source),
                    "opset": m.model.opset,
                    "ir_version": m.model.proto.ir_version,
                    "inputs": {n: list(s) for n, s in m.inputs().items()},
                    "outputs": [o.name for o in m.model.proto.graph.output],
                }
                for m in models
                if (source := sources[m.name]) is not None
            },
            "options": dict(options),
            "files": {name: sha256(folder / name) for name in names},
        },
    )
    return (*names, MANIFEST)


def _readme(target: HandoffTarget, options: Mapping[str, str]) -> str:
    """What to do with the folder."""
    lines = [
        f"Bundle for {target.name}, written by onnxprune {onnxprune.__version__}.",
        "",
        "On the target's machine:   python3 run.py        (python3 run.py --help lists the options)",
        "Then, where onnxprune is:  onnxprune bench --collect THIS_FOLDER",
        "",
        "Needs:",
        *(f"  {n}" for n in target.needs),
        "",
        "models/          the graphs: fixed shapes, shapes of all tensors written down",
        "checks.json      what the target says about each node",
        "inputs.npz       inputs, with onnxruntime's outputs in expected_*.npz",
        "manifest.json    options and sha256 of every file; run.py checks them first",
        "",
        "Options:",
        *(f"  {n} = {v}    {target.options[n].text}" for n, v in options.items()),
    ]
    if target.sources:
        lines += ["", "Limits in checks.json are those of:", *(f"  {s}" for s in target.sources)]
    return "\n".join(lines) + "\n"
