"""Recipes of the documentation run, where the packages that they need are installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import blocks
from run_recipes import NOTE, RECIPES, run_page

PAGES = sorted(path for path in RECIPES.glob("*.md") if path.stem != "index")
STEPS = ("Export", "Prune", "Check", "Deploy")
MODULES = {"torch": "torch.onnx"}  # what to import of a package, if not its name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_recipe_goes_from_the_export_to_the_deployment(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    steps = [step for step in re.findall(r"^(\w+)", text, re.MULTILINE) if step in STEPS]
    # a package may ship the model
    assert steps[-3:] == list(STEPS[1:]) and (steps[0] == STEPS[0] or "Copy the" in text)
    run = [block for block in blocks(page) if block.value == NOTE]
    assert len(run) >= len(STEPS)
    listed = (RECIPES / "index.md").read_text(encoding="utf-8")
    assert f"({page.name})" in listed


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_recipe_run(page: Path, tmp_path: Path) -> None:
    (needed,) = re.findall(r"[Nn]eeds `pip install ([^`]+)`", page.read_text(encoding="utf-8"))
    for package in needed.split():
        pytest.importorskip(MODULES.get(package, package))
    assert run_page(page, tmp_path) == []
