"""Old import paths, public names and options are still read."""

from __future__ import annotations

import importlib

import pytest

import onnxprune
from onnxprune.allocators import base
from onnxprune.moved import MODULES


@pytest.mark.parametrize("old", MODULES)
def test_old_module_is_the_new_one(old: str) -> None:
    new = importlib.import_module(f"onnxprune.{MODULES[old]}")
    with pytest.warns(DeprecationWarning, match=MODULES[old]) as _:
        importlib.sys.modules.pop(f"onnxprune.{old}", None)  # type: ignore[attr-defined]
        module = importlib.import_module(f"onnxprune.{old}")
    assert module is new
    assert new.__spec__ is not None and new.__spec__.name == f"onnxprune.{MODULES[old]}"


def test_old_public_name() -> None:
    assert onnxprune.analyse is onnxprune.analyze


def test_old_option_name() -> None:
    assert onnxprune.Recipe.of({"labelled": "labels.npz"}).labeled == "labels.npz"


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("onnxprune.engines.base", "Options", "EngineOptions"),
        ("onnxprune.engines.base", "refused", "refusal"),
        ("onnxprune.deploy.bundle", "Target", "HandoffTarget"),
        ("onnxprune.deploy.bundle", "Result", "TargetResult"),
    ],
)
def test_old_name_in_a_module(module: str, old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is now {module}.{new}"):
        value = getattr(importlib.import_module(module), old)
    assert value is getattr(importlib.import_module(module), new)
    with pytest.raises(AttributeError):
        _ = importlib.import_module(module).no_such_name


@pytest.mark.parametrize("name", base._MOVED)
def test_old_name_of_an_allocator(name: str) -> None:
    module, new = base._MOVED[name]
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(base, name) is getattr(importlib.import_module(module), new)
