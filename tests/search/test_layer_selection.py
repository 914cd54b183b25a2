"""Rounds of layer selection on the demo network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from onnxprune import demo
from onnxprune.allocate.base import Constraints
from onnxprune.analysis.walk import analyse
from onnxprune.calibrate.data import open_data
from onnxprune.checks import input_types
from onnxprune.errors import TargetError
from onnxprune.model.io import load
from onnxprune.saliency.base import Context
from onnxprune.search import layer_selection as module
from onnxprune.search.base import Search
from onnxprune.search.journal import Journal
from onnxprune.search.layer_selection import Selection, layer_selection, select

FILES = demo.files()


def search(budget: float, **options: object) -> Search:
    analysis = analyse(load(FILES.model))
    data = open_data(FILES.calibration, input_types(analysis.model), samples=40)
    constraints = Constraints({"macs": budget * analysis.cost().macs}, round_to=4)
    return Search(Context(analysis, data, batch_size=16), constraints, options={"rates": "0.25,0.5", "params_map": 4, "flops_map": 4, "end_map": 2, "rounds": 6, **options})


def test_rounds_meet_the_budget_and_go_on_after_a_kill(tmp_path: Path) -> None:
    here = search(0.8)
    whole = layer_selection(replace(here, journal=Journal(tmp_path / "whole.jsonl")))
    assert here.met(whole.kept) and len(whole.decided_by["rounds"]) >= 1
    for name, kept in whole.kept.items():
        assert len(kept) >= max(1, here.analysis.group(name).size * 0.1)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_bytes(b"".join(lines[: 2 * len(lines) // 3]))
    assert layer_selection(replace(here, journal=Journal(tmp_path / "part.jsonl"))).kept == whole.kept


@pytest.mark.parametrize("round_to", [1, 4])
def test_no_group_of_the_last_round_can_have_a_step_back(round_to: int) -> None:
    here = search(0.8)
    here = replace(here, constraints=replace(here.constraints, round_to=round_to))
    kept = layer_selection(here).kept
    assert here.met(kept)
    cheapest = min(here.analysis.cost({n: k[:-round_to]}).macs for n, k in kept.items() if len(k) > round_to)
    short = here.constraints.budgets["macs"] - here.analysis.cost(kept).macs
    assert short < here.analysis.cost().macs - cheapest


def test_what_cannot_be_reached_is_said() -> None:
    with pytest.raises(TargetError, match="raise rounds"):
        layer_selection(search(0.2, rounds=1, params_layers=1, flops_layers=0))


def test_every_round_saves_its_share_whatever_that_costs() -> None:
    here = search(0.5, rounds=4, max_drop=0.0)
    plan, whole = layer_selection(here), here.analysis.cost().macs
    left, budget = whole, here.constraints.budgets["macs"]
    for number, done in enumerate(plan.decided_by["rounds"]):
        assert left - done["macs"] >= (left - budget) / (4 - number) * (1 - 1e-12)
        left = done["macs"]
    assert left <= budget and len(plan.decided_by["rounds"]) <= 4


def test_lists_are_those_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Selection] = []
    monkeypatch.setattr(module, "select", lambda records, how: asked.append(how) or select(records, how))
    here = search(0.9, rounds=1)
    layer_selection(here)
    layer_selection(replace(here, constraints=replace(here.constraints, budgets={"params": 0.9 * here.analysis.cost().params})))
    layer_selection(replace(here, options={**here.options, "params_layers": 2}))
    assert [(how.params_layers > 0, how.flops_layers > 0) for how in (asked[0], asked[-1])] == [(False, True), (True, True)]
    assert any(how.params_layers and not how.flops_layers for how in asked)


def test_as_published_there_is_no_refit() -> None:
    here = search(0.8, refit="false", params_layers=6)
    assert here.met(layer_selection(here).kept)
