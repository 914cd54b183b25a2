"""Write a bundle: a folder with everything that a target's machine needs to measure models."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from onnx import helper

import onnxprune
from onnxprune.deploy import TARGETS
from onnxprune.deploy.bundle import (
    SEVERITIES,
    Check,
    Files,
    HandoffTarget,
    PreparedModel,
    Samples,
    check,
    script,
)
from onnxprune.deploy.collect import FORMAT, MANIFEST, Collected, collect, round_trip
from onnxprune.deploy.layers import layer_files
from onnxprune.deploy.nodes import find_foreign_ops
from onnxprune.deploy.prepare import prepare
from onnxprune.errors import DataError, OutputError, UsageError, unknown
from onnxprune.files import replace_folder, sha256, write_bytes, write_json
from onnxprune.ir.io import Model, digest, save
from onnxprune.ir.runtime import Session

__all__ = [
    "TARGETS",
    "Collected",
    "HandoffBundle",
    "choose",
    "collect",
    "handoff",
    "round_trip",
]

TIMES_LAYERS = ("jetson", "remote")
RANDOM_BATCHES = 8  # batches of random samples if none are given
SAMPLES = 200  # most samples that a bundle holds for a comparison of outputs
_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


@dataclass(frozen=True)
class HandoffBundle:
    """A written bundle.

    Attributes
    ----------
    folder
        Where it was written.
    target
        Name of the target.
    checks
        Model name -> compatibility checks of its nodes.
    files
        Paths relative to the folder.
    """

    folder: Path
    target: str
    checks: Mapping[str, tuple[Check, ...]]
    files: tuple[str, ...]

    def count(self, model: str) -> dict[str, int]:
        """Return the number of checks per severity."""
        return {s: sum(c.severity == s for c in self.checks[model]) for s in SEVERITIES}


def handoff(
    original: Model,
    pruned: Model | None,
    to: str,
    folder: str | Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    options: Mapping[str, str] | None = None,
    samples: Samples | None = None,
    overwrite: bool = False,
    layers: int = 0,
) -> HandoffBundle:
    """Write the bundle of a target.

    Parameters
    ----------
    original, pruned
        Models to compare; `pruned` may be None.
    to
        Name of the target.
    folder
        Folder to write; it appears only when it is complete.
    shapes
        Input name -> shape, for inputs with dynamic axes; a dynamic first axis is a batch of 1.
    options
        Values of the target's options, as text.
    samples
        Input name -> array of shape (n, ...), or None for random ones.
    overwrite
        Replace an existing bundle.
    layers
        Multiple of the widths at which each layer of the original is timed as well; 0 = none.

    Raises
    ------
    UsageError
        Unknown target, option or value, or one whose script times no layers.
    DataError
        The samples do not fit the model's inputs.
    OutputError
        The folder exists and `overwrite` is not set, or it is not a bundle.
    """
    target: HandoffTarget = TARGETS.get(to)
    values = choose(target, options or {})
    sources = {"original": original} | ({} if pruned is None else {"pruned": pruned})
    models = [prepare(model, name, target, shapes) for name, model in sources.items()]
    _check_samples(models[0], samples)
    checks = {m.name: check(m, target) for m in models}
    files = _list_files(target, models, values, samples)
    files |= _list_layer_files(target, original, layers, shapes)
    folder = Path(folder)
    _check_replaceable(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # written beside the destination and renamed, so that no incomplete bundle is ever visible
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        bundle = Path(scratch) / folder.name
        _write_files(bundle, models, samples, files, checks)
        names = _write_manifest(bundle, target, models, values, sources)
        replace_folder(bundle, folder)  # the old bundle goes into the scratch folder
    return HandoffBundle(folder, to, checks, names)


def _list_layer_files(
    target: HandoffTarget,
    original: Model,
    multiple: int,
    shapes: Mapping[str, Sequence[int]] | None,
) -> Files:
    """Return the files that time layers, {} for 0; UsageError if the target's script cannot."""
    if not multiple:
        return {}
    if target.name not in TIMES_LAYERS:
        raise UsageError(
            "layers-target",
            f"layers are timed on {' and '.join(TIMES_LAYERS)}, not {target.name}: omit --layers",
        )
    return layer_files(original, multiple, shapes)


def choose(target: HandoffTarget, given: Mapping[str, str]) -> dict[str, str]:
    """Return the values of all options; UsageError for an unknown name or value."""
    for name, value in given.items():
        if name not in target.options:
            raise unknown(f"{target.name} option", name, target.options)
        # values of other options are tested by the target, which knows their units
        choices = target.options[name].choices
        if choices and value not in choices:
            raise UsageError(
                "option-value",
                f"{target.name} option {name}={value!r} is unknown; use {', '.join(choices)}",
            )
    return {name: str(given.get(name, option.default)) for name, option in target.options.items()}


def _check_samples(model: PreparedModel, samples: Samples | None) -> None:
    """Raise DataError if the samples are not named like the model's inputs."""
    inputs = model.inputs()
    # missing and unknown names alike: both are mostly typos
    if samples is not None and set(samples) != set(inputs):
        raise DataError(
            "data-names",
            f"samples are named {', '.join(sorted(samples))}; "
            f"the model's inputs are {', '.join(sorted(inputs))}",
        )


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    """Raise OutputError if the folder exists and may not be replaced."""
    if not folder.exists():
        return
    if not overwrite:
        raise OutputError(
            "output-exists", f"{folder} exists; pass --overwrite (overwrite=True) to replace it"
        )
    # an empty folder holds nothing to lose
    if not folder.is_dir() or any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise OutputError(
            "output-not-a-bundle",
            f"{folder} is not a bundle and is not replaced; choose another folder",
        )


def _list_files(
    target: HandoffTarget,
    models: Sequence[PreparedModel],
    options: Mapping[str, str],
    samples: Samples | None,
) -> dict[str, bytes]:
    """Return the target's files, the scripts and README.txt by path."""
    files = dict(target.files(models, options, samples)) if target.files else {}
    # on the right: a target's own files never replace the scripts
    return files | {
        "run.py": script(target.script),
        "common.py": script("common"),
        "README.txt": _format_readme(target, options).encode(),
    }


def _write_files(
    folder: Path,
    models: Sequence[PreparedModel],
    samples: Samples | None,
    files: Mapping[str, bytes],
    checks: Mapping[str, tuple[Check, ...]],
) -> None:
    """Write everything but the manifest."""
    (folder / "models").mkdir(parents=True)
    for m in models:
        save(m.model, folder / "models" / f"{m.name}.onnx")
    _write_samples(folder, models, samples)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / name, content)
    rows = {name: [asdict(c) for c in of_model] for name, of_model in checks.items()}
    write_json(folder / "checks.json", rows)


def _write_samples(folder: Path, models: Sequence[PreparedModel], samples: Samples | None) -> None:
    """Write inputs.npz and onnxruntime's outputs in expected_NAME.npz, arrays of shape (n, ...)."""
    samples = models[0].random_samples(RANDOM_BATCHES) if samples is None else samples
    inputs = {}
    for name, values in samples.items():
        # at least one batch
        most = max(SAMPLES, *models[0].inputs()[name][:1])
        # in the model's type: sources may deliver float64 or uint8, and devices convert nothing
        inputs[name] = np.asarray(values)[:most].astype(_input_type(models[0], name))
    # inputs of both models are the same: pruning keeps the inputs of a graph
    _save_arrays(folder / "inputs.npz", inputs)
    for m in models:
        # onnxruntime cannot compute expected outputs of foreign operators
        if not find_foreign_ops(m.model):
            _save_arrays(folder / f"expected_{m.name}.npz", _run_batches(m, inputs))


def _input_type(model: PreparedModel, name: str) -> np.dtype:
    """Return the numpy type of an input, float32 for one that numpy lacks."""
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.model.proto.graph.input}
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kinds[name]))
    return dtype if dtype.kind in "fiub" else np.dtype(np.float32)


def _run_batches(model: PreparedModel, inputs: Samples) -> dict[str, np.ndarray]:
    """Return onnxruntime's outputs as output_0, output_1, ..., each of shape (n, ...)."""
    session = Session(model.model)
    kinds = {n: _NUMPY.get(kind, np.float32) for n, (_, kind) in session.inputs.items()}
    rows = []
    for feeds in model.feeds(inputs):
        # sources may deliver float64 or uint8
        rows.append(session.run({n: a.astype(kinds[n]) for n, a in feeds.items()}))
    return {
        # numbered: names of outputs may hold slashes, which an archive reads as folders
        f"output_{index}": np.concatenate([row[name] for row in rows])
        for index, name in enumerate(session.outputs)
    }


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz without time stamps, so that equal arrays give equal bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            # ZipInfo has the same date for every file; pickles would run code when they are read
            with archive.open(zipfile.ZipInfo(name + ".npy"), "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _write_manifest(
    folder: Path,
    target: HandoffTarget,
    models: Sequence[PreparedModel],
    options: Mapping[str, str],
    sources: Mapping[str, Model],
) -> tuple[str, ...]:
    """Write the manifest with hashes of all other files; return the names of all files."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    # posix paths in a fixed order: the same bundle on every system
    names = tuple(sorted(path.relative_to(folder).as_posix() for path in paths))
    write_json(
        folder / MANIFEST,
        {
            "format": FORMAT,
            "target": target.name,
            "onnxprune": onnxprune.__version__,
            "models": {
                m.name: {
                    "file": f"models/{m.name}.onnx",
                    "source_sha256": digest(sources[m.name]),
                    "opset": m.model.opset,
                    "ir_version": m.model.proto.ir_version,
                    "inputs": {n: list(s) for n, s in m.inputs().items()},
                    "outputs": [o.name for o in m.model.proto.graph.output],
                }
                for m in models
            },
            "options": dict(options),
            "files": {name: sha256(folder / name) for name in names},
        },
    )
    return (*names, MANIFEST)


def _format_readme(target: HandoffTarget, options: Mapping[str, str]) -> str:
    """Return README.txt: how to run the bundle, what it needs and holds."""
    lines = [
        f"Bundle for {target.name}, written by onnxprune {onnxprune.__version__}.",
        "",
        "On the target's machine:  python3 run.py        (python3 run.py --help lists options)",
        "On this machine:          onnxprune bench --collect THIS_FOLDER",
        "",
        "Requirements:",
        *(f"  {need}" for need in target.needs),
        "",
        "models/          graphs with static input shapes and all inferred shapes",
        "checks.json      compatibility checks of each node",
        "inputs.npz       inputs; expected_*.npz hold onnxruntime's outputs for them",
        "manifest.json    options and sha256 of every file; run.py verifies them first",
        "",
        "Options:",
        *(f"  {n} = {value}    {target.options[n].text}" for n, value in options.items()),
    ]
    if target.sources:
        lines += ["", "Sources of the limits in checks.json:"]
        lines += [f"  {source}" for source in target.sources]
    return "\n".join(lines) + "\n"
