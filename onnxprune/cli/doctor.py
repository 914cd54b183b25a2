"""Command doctor: check the installation and the machine."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from onnxprune.cli.command import command
from onnxprune.cli.common import emit, shared

CORE = ("onnxprune", "numpy", "scipy", "onnx", "onnxruntime", "click", "pillow")
# extra -> modules that it installs
EXTRAS = {
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
_TABLES = ("machine", "packages", "extras", "engines", "plug-ins")


@command()
@shared
def doctor(as_json: bool) -> int:
    """Check versions, extras, engines, CPUs and memory of this machine.

    Exit code 1 if something that onnxprune needs is missing.
    """
    from onnxprune.report.text import columns

    result = examine()
    if as_json:
        emit(result)
        return 1 if result["problems"] else 0
    for title in filter(result.get, _TABLES):
        rows = [(f"  {name}", str(value)) for name, value in result[title].items()]
        click.echo(f"{title}\n{columns(rows, left=2)}")
    for text in result["problems"]:
        click.echo(f"problem: {text}")
    for text in result["notes"]:
        click.echo(f"note: {text}")
    if not result["problems"]:
        click.echo("no problems found")
    return 1 if result["problems"] else 0


def examine() -> dict[str, Any]:
    """Return tables name -> state (see _TABLES), and lists of "problems" and "notes"."""
    packages = {name: _find_version(name) for name in CORE}
    extras = {}
    for extra, modules in EXTRAS.items():
        complete = all(map(_is_installed, modules))
        extras[extra] = "installed" if complete else f'pip install "onnxprune[{extra}]"'
    problems = _find_problems(packages)
    return {
        "machine": _describe_machine(),
        "packages": packages,
        "extras": extras,
        "engines": _check_engines(),
        "plug-ins": _check_plugins(),
        "problems": problems,
        # the check imports onnx and onnxruntime, which may be what is missing
        "notes": [] if problems else _check_ir_version(packages),
    }


def _check_engines() -> dict[str, str]:
    """Return engine -> "available", or why it is not."""
    from onnxprune.engines import ENGINES
    from onnxprune.errors import OnnxpruneError

    engines = {}
    for name in ENGINES:
        try:
            engines[name] = ENGINES.get(name).available() or "available"
        except OnnxpruneError as problem:
            engines[name] = problem.message
        except Exception as problem:  # a plug-in may raise anything
            engines[name] = f"broken: {problem!r}"
    return engines


def _check_plugins() -> dict[str, str]:
    """Return "kind name" of each plug-in -> its location, or why it cannot be imported."""
    from onnxprune.allocators import ALLOCATORS
    from onnxprune.analysis.rules import PLUGINS
    from onnxprune.criteria import CRITERIA
    from onnxprune.data import DATA_SOURCES
    from onnxprune.data.label_formats import FORMATS
    from onnxprune.deploy import TARGETS
    from onnxprune.engines import ENGINES
    from onnxprune.errors import OnnxpruneError
    from onnxprune.metrics import METRICS
    from onnxprune.repair import REPAIRS
    from onnxprune.search import METHODS

    plugins = {}
    for registry in (
        PLUGINS,
        CRITERIA,
        ALLOCATORS,
        METHODS,
        REPAIRS,
        ENGINES,
        METRICS,
        DATA_SOURCES,
        FORMATS,
        TARGETS,
    ):
        for name, entry in registry.plugins.items():
            try:
                registry.get(name)
                plugins[f"{registry.kind} {name}"] = entry.value
            except OnnxpruneError as problem:
                plugins[f"{registry.kind} {name}"] = problem.message
    return plugins


def _describe_machine() -> dict[str, Any]:
    """Return operating system, Python, CPUs that this process may use, and memory."""
    from onnxprune.ir.limits import memory_bytes
    from onnxprune.parallel import count_cpus

    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "CPUs": count_cpus(),
        "memory": _to_gigabytes(memory_bytes()),
    }


def _find_problems(packages: Mapping[str, str]) -> list[str]:
    """Return what is missing or too small."""
    from onnxprune.ir.limits import memory_bytes

    problems = [
        f"{name} is missing: pip install {name}"
        for name, number in packages.items()
        if number == "missing"
    ]
    memory = memory_bytes()
    # 0 if the system does not report it
    if memory and memory < LEAST_MEMORY_BYTES:
        problems.append(
            f"only {_to_gigabytes(memory)} of memory: calibrate with a small --batch-size"
        )
    return problems


def _check_ir_version(packages: Mapping[str, str]) -> list[str]:
    """Return a note if onnx writes a newer IR version than onnxruntime reads.

    Models that onnx creates here then do not run; those that it only reads do.
    """
    import onnx
    import onnxruntime  # type: ignore[import-untyped]  # ships no annotations

    model = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    try:
        options = onnxruntime.SessionOptions()
        # a failure is one of the expected results, so onnxruntime prints nothing about it
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


def _find_version(name: str) -> str:
    """Return the version of a package, or "missing"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _is_installed(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    try:
        # not imported, which takes seconds for torch and ray
        return importlib.util.find_spec(module) is not None
    # ImportError for a package that is broken, ValueError for a module without a specification
    except (ImportError, ValueError):
        return False


def _to_gigabytes(count: int) -> str:
    """Return a number of bytes in GB."""
    return f"{count / 1e9:.1f} GB" if count else "unknown"
