"""Old import paths, public names and options are still accepted."""

from __future__ import annotations

import importlib

import pytest

import onnxprune
from onnxprune.moved import MODULES


@pytest.mark.parametrize("old", MODULES)
def test_old_module_path_returns_the_new_module(old: str) -> None:
    new = importlib.import_module(f"onnxprune.{MODULES[old]}")
    with pytest.warns(DeprecationWarning, match=MODULES[old]) as _:
        importlib.sys.modules.pop(f"onnxprune.{old}", None)  # type: ignore[attr-defined]
        module = importlib.import_module(f"onnxprune.{old}")
    assert module is new
    assert new.__spec__ is not None and new.__spec__.name == f"onnxprune.{MODULES[old]}"


def test_import_hook_knows_every_old_module() -> None:
    first_parts = {name.partition(".")[0] for name in MODULES}
    assert first_parts == onnxprune._MOVED


def test_old_public_names_are_aliases() -> None:
    assert onnxprune.analyse is onnxprune.analyze


def test_old_option_names_are_accepted() -> None:
    assert onnxprune.Recipe.of({"labelled": "labels.npz"}).labeled == "labels.npz"


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("engines.base", "Options", "engines.base:EngineOptions"),
        ("engines.base", "refused", "engines.base:refusal"),
        ("deploy.bundle", "Target", "deploy.bundle:HandoffTarget"),
        ("deploy.bundle", "Node", "deploy.nodes:GraphNode"),
        ("criteria.base", "check_criterion", "testing.criteria:check_criterion"),
        ("testing.plans", "check_rule", "testing.rules:check_rule"),
        ("allocators.base", "Step", "allocators.base:WidthStep"),
        ("allocators.base", "allocate", "allocators.allocate:allocate"),
        ("allocators.base", "first_missed", "allocators.budgets:first_missed"),
        ("allocators.base", "fixed_widths", "allocators.steps:fixed_widths"),
        ("allocators.base", "unreachable", "allocators.budgets:unreachable"),
    ],
)
def test_old_names_in_modules_warn_and_return_the_new_ones(module: str, old: str, new: str) -> None:
    old_module = importlib.import_module(f"onnxprune.{module}")
    place, _, name = new.partition(":")
    with pytest.warns(DeprecationWarning, match=f"{old} is now onnxprune.{place}.{name}"):
        value = getattr(old_module, old)
    assert value is getattr(importlib.import_module(f"onnxprune.{place}"), name)
    with pytest.raises(AttributeError):
        _ = old_module.no_such_name
