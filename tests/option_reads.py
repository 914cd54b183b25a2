"""Options that a command offers, and those that it reads."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import pytest

from onnxprune.cli import run
from onnxprune.cli.app import app
from onnxprune.run.recipe import OPTIONS, Recipe


def offered(command: str) -> set[str]:
    """Return the recipe options among the options of a command."""
    definition = app.get_command(click.Context(app), command)
    assert definition is not None
    return {p.name for p in definition.params} & set(OPTIONS)


DERIVED = {"compute_threads": "threads"}  # property of a recipe -> option that it follows from


def read_by(calls: Iterable[Sequence[str]], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Run the calls and return the recipe options that they read."""
    names: set[str] = set()

    def record(recipe: Recipe, name: str) -> object:
        # the recipe reads all of its own options when it is made
        caller = Path(sys._getframe(1).f_code.co_filename).name
        option = DERIVED.get(name, name)
        if option in OPTIONS and caller not in ("recipe.py", "dataclasses.py"):
            names.add(option)
        return object.__getattribute__(recipe, name)

    monkeypatch.setattr(Recipe, "__getattribute__", record, raising=False)
    for call in calls:
        assert run(list(call)) == 0, call
    return names
