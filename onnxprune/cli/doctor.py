"""doctor: what is installed, and what does not go together."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from onnxprune.cli.common import emit, shared

CORE = ("onnxprune", "numpy", "scipy", "onnx", "onnxruntime", "click")
# extra -> modules that it brings
EXTRAS = {
    "images": ("PIL",),
    "torch": ("torch",),
    "openvino": ("openvino",),
    "ncnn": ("ncnn", "pnnx"),
    "mnn": ("MNN",),
    "tensorrt": ("tensorrt",),
    "pycuda": ("pycuda",),
    "cluster": ("joblib", "ray", "dask"),
    "coco": ("pycocotools",),
}
LEAST_MEMORY_BYTES = 1 << 30


@click.command()
@shared
def doctor(as_json: bool) -> int:
    """Check versions, extras, engines, CPUs and memory of this machine.

    Exit code 1 if something that onnxprune needs is missing.
    """
    from onnxprune.report.terminal import columns

    found = examine()
    if as_json:
        emit(found)
    else:
        for title in filter(found.get, ("machine", "packages", "extras", "engines", "plug-ins")):
            click.echo(
                f"{title}\n"
                + columns(
                    [(f"  {name}", str(value)) for name, value in found[title].items()], left=2
                )
            )
        for kind in ("problem", "note"):
            for text in found[f"{kind}s"]:
                click.echo(f"{kind}: {text}")
        if not found["problems"]:
            click.echo("no problems found")
    return 1 if found["problems"] else 0


def examine() -> dict[str, Any]:
    """machine, packages, extras, engines, plug-ins: name -> what there is; problems, notes: one sentence each."""
    from onnxprune.engines import ENGINES
    from onnxprune.errors import OnnxpruneError

    engines = {}
    for name in ENGINES:
        try:
            engines[name] = ENGINES.get(name).available() or "available"
        except OnnxpruneError as problem:
            engines[name] = problem.message
        except Exception as problem:  # of a plug-in
            engines[name] = f"broken: {problem!r}"
    packages = {name: _version(name) for name in CORE}
    extras = {
        extra: "installed" if all(map(_found, modules)) else f'pip install "onnxprune[{extra}]"'
        for extra, modules in EXTRAS.items()
    }
    problems = _problems(packages)
    notes = [] if problems else _onnx_mismatch(packages)
    return {
        "machine": _machine(),
        "packages": packages,
        "extras": extras,
        "engines": engines,
        "plug-ins": _plugins(),
        "problems": problems,
        "notes": notes,
    }


def _plugins() -> dict[str, str]:
    """What other packages add: "kind name" -> where it is, or why it cannot be imported."""
    from onnxprune.allocators import ALLOCATORS
    from onnxprune.analysis.rules import PLUGINS
    from onnxprune.criteria import CRITERIA
    from onnxprune.data import DATA_SOURCES
    from onnxprune.deploy import TARGETS
    from onnxprune.engines import ENGINES
    from onnxprune.errors import OnnxpruneError
    from onnxprune.metrics import METRICS
    from onnxprune.repair import REPAIRS
    from onnxprune.search import METHODS

    found = {}
    for registry in (
        PLUGINS,
        CRITERIA,
        ALLOCATORS,
        METHODS,
        REPAIRS,
        ENGINES,
        METRICS,
        DATA_SOURCES,
        TARGETS,
    ):
        for name, entry in registry.plugins.items():
            try:
                registry.get(name)
                found[f"{registry.kind} {name}"] = entry.value
            except OnnxpruneError as problem:
                found[f"{registry.kind} {name}"] = problem.message
    return found


def _machine() -> dict[str, Any]:
    from onnxprune.ir.limits import memory_bytes

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "CPUs": cpus,
        "memory": _gigabytes(memory_bytes()),
    }


def _problems(packages: dict[str, str]) -> list[str]:
    """What is missing or too little."""
    found = [
        f"{name} is missing: pip install {name}"
        for name, number in packages.items()
        if number == "missing"
    ]
    from onnxprune.ir.limits import memory_bytes

    memory = memory_bytes()
    if memory and memory < LEAST_MEMORY_BYTES:
        found.append(f"only {_gigabytes(memory)} of memory: calibrate with a small --batch-size")
    return found


def _onnx_mismatch(packages: dict[str, str]) -> list[str]:
    """Onnx writes a newer IR version than onnxruntime reads: models made with it here do not run, those that are only read do."""
    import onnx
    import onnxruntime  # type: ignore[import-untyped]

    model = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as problem:  # onnxruntime's exceptions share no base class
        if "IR version" in str(problem):
            return [
                f"onnx {packages['onnx']} writes IR version {model.ir_version}, which onnxruntime "
                f"{packages['onnxruntime']} does not read: export with an older onnx, or lower "
                "ir_version before saving (onnxprune keeps a model's IR version)"
            ]
    return []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count else "unknown"
