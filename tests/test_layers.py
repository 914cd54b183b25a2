"""Imports go down the layers without cycles, heavy ones are deferred, and starting is fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import onnxprune

PACKAGE = Path(__file__).resolve().parents[1] / "onnxprune"
SCRIPTS = PACKAGE / "deploy" / "scripts"  # copied into bundles, never imported by the package
MOST_LINES = 450
START_CPU_S = 0.5

# from the bottom; members of a layer may import each other in one direction
LAYERS = (
    (
        "errors",
        "types",
        "registry",
        "files",
        "scratch",
        "events",
        "blas",
        "garbage",
        "parallel",
        "named",
        "summary",
        "demo",
        "moved",
    ),
    ("ir",),
    ("analysis",),
    ("surgery",),
    ("data",),
    ("autodiff", "statistics", "criteria", "allocators", "repair", "metrics"),
    ("tune", "search", "engines", "sparsify", "quantize"),
    ("deploy", "testing"),
    ("report",),
    ("run",),
    ("cli", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# extras of setup.cfg: never needed to import a module that others import
EXTRAS = {
    "PIL",
    "torch",
    "openvino",
    "ncnn",
    "pnnx",
    "MNN",
    "tensorrt",
    "cuda",
    "pycuda",
    "joblib",
    "ray",
    "dask",
    "distributed",
    "pycocotools",
    "onnx_graphsurgeon",
    "onnx_ir",
    "pyarrow",
    "yaml",
}
# always installed: slow to import, or of one platform or Python version only
HEAVY = {"onnx", "onnxruntime", "scipy", "fcntl", "msvcrt", "tomllib", "tomli", "threadpoolctl"}
# of the standard library: they would delay `--help`, which needs them only for errors and plug-ins
LATE = {"difflib", "importlib.metadata", "traceback"}


class Import(NamedTuple):
    """An import.

    Attributes
    ----------
    target
        Dotted name.
    deferred
        Whether it is inside a function.
    line
        Line number.
    """

    target: str
    deferred: bool
    line: int


def modules() -> dict[str, Path]:
    """Return the file of every module of the package by dotted name."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("onnxprune", *path.relative_to(PACKAGE).with_suffix("").parts)
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(tree: ast.AST, deferred: bool = False) -> Iterator[Import]:
    """Yield every import below a syntax tree."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, deferred, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (
                Import(f"{node.module}.{alias.name}", deferred, node.lineno) for alias in node.names
            )
        yield from imports(
            node, deferred or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        )


@cache
def imported() -> Mapping[str, list[Import]]:
    """Return the imports of every module; targets in the package are names of modules."""
    known = modules()

    def module_of(target: str) -> str:
        return target if target in known or "." not in target else target.rpartition(".")[0]

    return {
        name: [
            i._replace(target=module_of(i.target))
            for i in imports(ast.parse(path.read_text(encoding="utf-8")))
        ]
        for name, path in known.items()
        if path.parent != SCRIPTS
    }


def layer(module: str) -> str:
    """Return the folder or top-level module of a module; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def inside(target: str) -> bool:
    """Return whether an import is of the package."""
    return target.split(".")[0] == "onnxprune"


@cache
def optional(module: str) -> bool:
    """Return whether importing the module needs an extra, directly or through another module."""
    # its imports are for type checkers, which execute nothing
    if module == "onnxprune":
        return False
    top = [i.target for i in imported()[module] if not i.deferred and i.target != module]
    return any(
        target.split(".")[0] in EXTRAS or target in imported() and optional(target)
        for target in top
    )


def light(module: str) -> bool:
    """Return whether importing the module must be cheap, so that its imports are deferred."""
    return layer(module) in ("cli", "__main__") or modules()[module].name == "__init__.py"


def test_every_module_has_a_layer() -> None:
    assert {layer(m) for m in modules()} - {""} <= set(RANK), (
        "add the layer of the new module to LAYERS"
    )


def test_imports_go_down() -> None:
    up = [
        f"{name}:{i.line} imports {i.target}"
        for name, found in imported().items()
        for i in found
        if inside(i.target)
        and layer(name)
        and layer(i.target)
        and RANK[layer(name)] < RANK[layer(i.target)]
    ]
    assert not up


def test_layers_have_no_cycle() -> None:
    edges = {
        (layer(name), layer(i.target))
        for name, found in imported().items()
        for i in found
        if inside(i.target)
    }
    below = {
        a: {b for x, b in edges if x == a and b not in ("", a)} for a in {a for a, _ in edges} if a
    }
    while below:
        leaves = {a for a in below if not below[a] & below.keys()}
        assert leaves, f"import cycle: {sorted(below)}"
        below = {a: b for a, b in below.items() if a not in leaves}


def test_modules_have_no_cycle() -> None:
    below = {
        name: {i.target for i in found if i.target in imported() and i.target != name}
        for name, found in imported().items()
        if layer(name)
    }
    while below:
        leaves = {a for a in below if not below[a] & below.keys()}
        assert leaves, f"import cycle: {sorted(below)}"
        below = {a: b for a, b in below.items() if a not in leaves}


def test_imports_inside_functions_have_a_reason() -> None:
    """An extra, a heavy library or a module that needs an extra, or in a module that is light."""
    without = [
        f"{name}:{i.line} imports {i.target}"
        for name, found in imported().items()
        for i in found
        if i.deferred
        and i.target.split(".")[0] not in EXTRAS | HEAVY
        and i.target not in LATE
        and not (inside(i.target) and (light(name) or optional(i.target)))
    ]
    assert not without


def test_only_tuning_needs_an_extra_on_import() -> None:
    early = [
        name
        for name in imported()
        if optional(name) and (layer(name) != "tune" or name == "onnxprune.tune")
    ]
    assert not early


@pytest.mark.parametrize("name", modules())
def test_files_stay_small(name: str) -> None:
    assert len(modules()[name].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_modules_classes_and_public_names_are_documented() -> None:
    silent = []
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [
            node
            for node in tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ]
        silent += [
            f"{name}.{getattr(node, 'name', '')}"
            for node in (tree, *classes)
            if tree.body and not ast.get_docstring(node)
        ]
    silent += [
        f"onnxprune.{name}"
        for name in onnxprune.__all__
        if callable(getattr(onnxprune, name)) and not getattr(onnxprune, name).__doc__
    ]
    assert not silent


@pytest.mark.parametrize(
    "code", ["import onnxprune", "import onnxprune.cli as c; c.main(['--help'])"]
)
def test_starting_is_fast(code: str) -> None:
    """The least processor time of three new interpreters, which other work hardly changes."""
    probe = (
        "import atexit, sys, time\n"
        "atexit.register(lambda: print(time.process_time(), file=sys.stderr))\n"
        f"{code}"
    )

    def seconds() -> float:
        done = subprocess.run(
            [sys.executable, "-c", probe], check=True, capture_output=True, text=True, timeout=120
        )
        return float(done.stderr.split()[-1])

    assert min(seconds() for _ in range(3)) < START_CPU_S
