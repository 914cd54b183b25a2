"""Public names and options have types, and these are those of the recipe."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune.run.keywords import RecipeKeywords
from onnxprune.run.option import to_plain
from onnxprune.run.recipe import OPTIONS, Recipe

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """\
from pathlib import Path
import numpy as np
import onnxprune

images = np.zeros((8, 3, 32, 32), np.float32)
result = onnxprune.optimize(
    Path("model.onnx"),
    target=["macs=50%", "params=2x"],
    data=({"x": image} for image in images),
    labeled={"x": images, "labels": np.zeros(8)},
    metric=lambda outputs, labels: outputs["y"].argmax(1) == labels["labels"],
    mean=(0.5, 0.5, 0.5),
    resize=(32, 32),
    ratio={"conv*": 0.5},
    on_event=lambda event: None,
)
macs: int = result.report.after.macs
text: str = result.summary() + onnxprune.load(b"").summary()
groups: list[str] = [group.name for group in onnxprune.analyze(result.model).groups]
onnxprune.optimize("model.onnx", data=images, samples=8, engine="none", round_to="auto")
onnxprune.optimize("model.onnx", smaples=8)  # wrong name
onnxprune.optimize("model.onnx", samples="8")  # wrong type
onnxprune.optimize("model.onnx", target=0.5)  # wrong type
onnxprune.optimize(12)  # no model
recipe = onnxprune.Recipe(target="macs=50%", mean=0.5, resize="letterbox", ratio={"a": "50%"})
ratios: dict[str, float] = dict(onnxprune.Recipe(samples=8).ratio)
onnxprune.Recipe(smaples=8)  # wrong name
onnxprune.Recipe(samples="8")  # wrong type
result.model.weights["w"] = 3  # read-only
result.reprot  # wrong name
onnxprune.optimise("model.onnx")  # wrong name
"""


def test_mypy_checks_calls_of_a_user(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            f"--config-file={ROOT / 'setup.cfg'}",
            f"--cache-dir={tmp_path / 'cache'}",
            "--strict-equality",
            "--warn-return-any",
            str(script),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    wrong = {int(n) for n in re.findall(r"script\.py:(\d+): error", done.stdout)}
    lines = SCRIPT.splitlines()
    assert wrong == {n for n, line in enumerate(lines, 1) if "  # " in line}, done.stdout
    assert '"samples"' in done.stdout and "error" not in done.stderr
    assert (ROOT / "onnxprune" / "py.typed").is_file()


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse((ROOT / "onnxprune" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imported = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        if node.module == "typing":
            continue
        for alias in node.names:
            # "as" marks a name as exported
            assert alias.asname == alias.name
            imported[alias.name] = node.module
    assert imported == onnxprune._PUBLIC


def test_keywords_are_the_fields_of_the_recipe() -> None:
    assert list(RecipeKeywords.__annotations__) == list(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_types_of_keywords_fit_the_parsers(name: str) -> None:
    """Every alternative of a type has values that the option accepts; so has the default."""
    hint = typing.get_type_hints(RecipeKeywords)[name]
    for alternative in alternatives(hint):
        accepted = [value for value in VALUES if fits(value, alternative) and parses(name, value)]
        assert accepted, f"{name}: no value of {alternative} is accepted"
    default = to_plain(getattr(Recipe(), name))
    assert not default or fits(default, hint)


VALUES: list[Any] = [
    *(None, 0, 1, 8, 0.5, True, "8", "0.5", "50%", "auto", "none", "macs=50%", "l2", "uniform"),
    *("one-shot", "both", "bilinear", "rgb", "nchw", "f32", "224x320", "a=0.5", "x:1,3,8,8"),
    *(
        "int8",
        "x:0",
        "imagenet",
        "top1",
        "rpi5",
        "onnxruntime",
        "l2+uniform",
        "least-squares",
        "images/",
    ),
    *(("macs=50%",), ("a=0.5",), ("x:1,3",), ("x:0",), ("l2+uniform",), ("a", "b"), (32, 32)),
    *((0.5, 0.5), ((1, 0.5),), {"a": "0.5"}, {"x": "1,3"}, {"x": (1, 3)}, {"x": 1}, {"x": 0.5}),
    *(Path("images"), [np.zeros(3)], lambda outputs, labels: 1.0, [lambda outputs, labels: 1.0]),
    np.zeros((2, 3)),
]


def parses(name: str, value: Any) -> bool:
    """Return whether the option accepts a value."""
    try:
        OPTIONS[name].validate(name, value)
    except onnxprune.OnnxpruneError:
        return False
    return True


def alternatives(hint: Any) -> list[Any]:
    """Return the members of a union, those of nested ones too."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [one for part in typing.get_args(hint) for one in alternatives(part)]
    return [hint]


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value has a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or value is None:
        return hint in (Any, type(None))
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in arguments)
    if origin is Callable or hint is Callable:
        return callable(value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(v, arguments[1]) for v in value.values())
    if origin is tuple:
        return isinstance(value, tuple) and all(map(fits, value, arguments))
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, (tuple, list)) and all(fits(v, arguments[0]) for v in value)
    if origin is not None and issubclass(origin, Iterable):
        return isinstance(value, Iterable) and not isinstance(value, str)
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is not type(None) and isinstance(value, hint)
