"""Rounds of layer selection on the demo network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from graph_text import net

from onnxprune import demo
from onnxprune.allocators.base import Constraints, widths
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import open_data, synthetic
from onnxprune.errors import TargetError, UsageError
from onnxprune.ir.io import load
from onnxprune.run.adapter import input_types
from onnxprune.search import base
from onnxprune.search import layer_selection as module
from onnxprune.search.base import Search
from onnxprune.search.journal import Journal
from onnxprune.search.layer_selection import Selection, layer_selection, select
from onnxprune.search.pagcp import pagcp
from onnxprune.search.sensitivity import SensitivityBench
from onnxprune.types import Plan

FILES = demo.files()
FIGURES = {"saved_params": 1, "saved_macs": 1, "timing": {}}


def search(budget: float, **options: object) -> Search:
    analysis = analyze(load(FILES.model))
    data = open_data(FILES.calibration, input_types(analysis.model), samples=40)
    constraints = Constraints({"macs": budget * analysis.cost().macs}, round_to=4)
    return Search(
        Context(analysis, data, batch_size=16),
        constraints,
        options={
            "rates": "0.25,0.5",
            "params_map": 4,
            "flops_map": 4,
            "end_map": 2,
            "rounds": 6,
            **options,
        },
    )


def test_rounds_meet_the_budget_and_resume(tmp_path: Path) -> None:
    here = search(0.8)
    whole = layer_selection(replace(here, journal=Journal(tmp_path / "whole.jsonl")))
    assert here.met(whole.kept) and len(whole.decided_by["rounds"]) >= 1
    for name, kept in whole.kept.items():
        assert len(kept) >= max(1, here.analysis.group(name).size * 0.1)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_bytes(b"".join(lines[: 2 * len(lines) // 3]))
    assert (
        layer_selection(replace(here, journal=Journal(tmp_path / "part.jsonl"))).kept == whole.kept
    )


@pytest.mark.parametrize(("budget", "round_to"), [(0.8, 1), (0.8, 4), (0.3, 8)])
def test_no_group_can_be_widened_by_a_step(budget: float, round_to: int) -> None:
    """Also not those of earlier rounds: at the next allowed width the budget is missed."""
    here = search(budget, rounds=5)
    here = replace(here, constraints=replace(here.constraints, round_to=round_to))
    kept = dict(layer_selection(here).kept)
    assert here.met(kept)
    for group, left in kept.items():
        size = here.analysis.group(group).size
        wider = min(w for w in widths(size, here.constraints) if w > len(left))
        more = tuple(sorted([*left, *sorted(set(range(size)) - set(left))[: wider - len(left)]]))
        assert not here.met({**kept, group: more})
        assert len(left) in widths(size, here.constraints)


def test_lower_rates_are_tried_where_higher_ones_are_not_allowed() -> None:
    here = search(0.8, flops_map=0.1, end_map=0.1)
    here = replace(here, constraints=replace(here.constraints, round_to=1, max_fraction=0.4))
    kept = layer_selection(here).kept
    assert here.met(kept) and all(
        len(k) >= 0.6 * here.analysis.group(n).size - 1e-9 for n, k in kept.items()
    )


def test_a_measured_budget_proceeds_to_other_groups() -> None:
    """The first group of the list may shrink only by half; the measure is a share of the MACs."""
    here = search(0.6, flops_layers=1, latency_layers=0, rounds=40)
    whole = here.analysis.cost().macs
    measures = {"latency": lambda kept: here.analysis.cost(kept).macs / whole}
    here = replace(
        here, constraints=Constraints({"latency": 0.6}, measures=measures, max_fraction=0.5)
    )
    kept = layer_selection(here).kept
    assert measures["latency"](kept) <= 0.6 and len(kept) > 1


@pytest.mark.parametrize("method", [layer_selection, pagcp])
def test_weights_that_cannot_be_refitted_are_cut_by_norms(method: Callable[[Search], Plan]) -> None:
    quantized = "; ".join(f"d{i} = DequantizeLinear(w{i}, s, z)" for i in (1, 2, 3))
    model = net(
        "float[n,4,8,8] x | int8[16,4,3,3] w1, int8[16,16,3,3] w2, int8[5,16,1,1] w3, "
        "float s = {0.01}, int8 z = {0} | "
        f"{quantized}; a = Conv(x, d1); r = Relu(a); b = Conv(r, d2); t = Relu(b); y = Conv(t, d3)"
    )
    analysis = analyze(load(model))
    data = synthetic(input_types(analysis.model), samples=40, seed=1)
    here = Search(
        Context(analysis, data, batch_size=16), Constraints({"macs": 0.7 * analysis.cost().macs})
    )
    assert here.met(method(here).kept)


@pytest.mark.parametrize(
    "options", [{"rates": "0.25,abc"}, {"rates": "1.5"}, {"rounds": 0}, {"max_drop": 2}]
)
def test_invalid_settings_are_rejected_before_any_measurement(
    options: Mapping[str, object],
) -> None:
    here = search(0.8, **options)
    with pytest.raises(UsageError, match="layer-selection: (rates|rounds)"):
        layer_selection(here)
    assert here.journal.measured == 0


def test_ratios_for_all_groups_leave_nothing_to_search() -> None:
    here = search(0.2)
    with pytest.raises(TargetError, match="after 0 rounds"):
        layer_selection(replace(here, constraints=replace(here.constraints, ratios={"*": 0.25})))


def test_scores_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed groups and rounds share them."""
    asked: list[str] = []
    monkeypatch.setattr(
        base, "CRITERIA", SimpleNamespace(get=lambda name: asked.append(name) or CRITERIA.get(name))
    )
    here = search(0.8)
    layer_selection(
        replace(
            here, constraints=replace(here.constraints, ratios={here.analysis.groups[0].name: 0.25})
        )
    )
    assert sorted(asked) == ["l2", "reconstruction"]


def test_unreachable_target_names_the_option_to_raise() -> None:
    with pytest.raises(TargetError, match="raise rounds"):
        layer_selection(search(0.2, rounds=1, params_layers=1, flops_layers=0))


def test_every_round_saves_its_share_at_any_loss() -> None:
    here = search(0.5, rounds=4, max_drop=0.0)
    plan, whole = layer_selection(here), here.analysis.cost().macs
    left, budget = whole, here.constraints.budgets["macs"]
    for number, done in enumerate(plan.decided_by["rounds"]):
        assert left - done["macs"] >= (left - budget) / (4 - number) * (1 - 1e-12)
        left = done["macs"]
    assert left <= budget and len(plan.decided_by["rounds"]) <= 4


def test_lists_are_those_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Selection] = []
    monkeypatch.setattr(
        module, "select", lambda records, how: asked.append(how) or select(records, how)
    )
    here = search(0.9, rounds=1)
    layer_selection(here)
    layer_selection(
        replace(
            here,
            constraints=replace(
                here.constraints, budgets={"params": 0.9 * here.analysis.cost().params}
            ),
        )
    )
    layer_selection(replace(here, options={**here.options, "params_layers": 2}))
    assert [(how.params_layers > 0, how.flops_layers > 0) for how in (asked[0], asked[-1])] == [
        (False, True),
        (True, True),
    ]
    assert any(how.params_layers and not how.flops_layers for how in asked)


def test_exponents_scale_up_if_single_groups_cost_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A typical group weighs as if it cost 1 % of the quality; exponents are never reduced."""
    powers: list[float] = []
    monkeypatch.setattr(
        module, "select", lambda records, how: powers.append(how.flops_map) or select(records, how)
    )
    for cost, expected in ((0.0005, 80.0), (0.05, 4.0)):
        monkeypatch.setattr(
            SensitivityBench,
            "figures",
            lambda self, kept, q=cost: {**FIGURES, "quality": math.exp(-q) if kept else 1.0},
        )
        layer_selection(search(0.9, rounds=1))
        np.testing.assert_allclose(powers.pop(), expected)
        monkeypatch.undo()
        monkeypatch.setattr(
            module,
            "select",
            lambda records, how: powers.append(how.flops_map) or select(records, how),
        )


def test_as_published_there_is_no_refit() -> None:
    here = search(0.8, refit="false", params_layers=6)
    assert here.met(layer_selection(here).kept)
