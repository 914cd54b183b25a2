"""PAGCP against published figures and against cut models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxprune import demo
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.linear import linears
from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import open_data
from onnxprune.errors import TargetError, UsageError
from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session
from onnxprune.run.adapter import input_types
from onnxprune.run.pipeline import optimize
from onnxprune.search.base import Search, keep_best
from onnxprune.search.journal import Journal
from onnxprune.search.pagcp import PagcpSettings, _Gate, cheapest, decay, pagcp, visit
from onnxprune.search.tasks import HeadLosses, summed
from onnxprune.surgery.cut import cut

FILES = demo.files()
PUBLISHED = {"initial_rate": 0.06, "topk": 0.8, "relax": 1.0, "refit": False, "proportional": False}


def search(budget: float = 0.8, **options: object) -> Search:
    """A search on the demo network with few samples."""
    analysis = analyze(load(FILES.model))
    data = open_data(FILES.calibration, input_types(analysis.model), samples=64)
    constraints = Constraints({"macs": budget * analysis.cost().macs}, round_to=4)
    return Search(Context(analysis, data, batch_size=16), constraints, options=options)


@pytest.mark.parametrize(("count", "published"), [(69, 0.97158), (86, 0.96930), (103, 0.96821)])
def test_the_published_decay(count: int, published: float) -> None:
    found = decay(count)
    assert found == pytest.approx(published, abs=6e-6)
    assert math.prod(1 + 0.06 * found**i for i in range(count)) == pytest.approx(6.0, rel=1e-9)


def test_few_groups_are_given_more_and_more() -> None:
    assert decay(10) > 1 and math.prod(
        1 + 0.06 * decay(10) ** i for i in range(10)
    ) == pytest.approx(6.0)
    assert decay(1) == decay(0) == 1.0


@pytest.mark.parametrize("changed", [{}, {"exp": True}, {"proportional": True}])
def test_no_head_exceeds_its_tolerance_at_any_accepted_step(changed: dict[str, bool]) -> None:
    """Losses are computed anew on cut models, and savings from the costs of both plans."""
    here = search()
    chosen = PagcpSettings(**{**PUBLISHED, **changed})
    scores, gate = here.scores("l2"), _Gate(here, chosen)
    steps = visit(here, gate, chosen, scores, {}, list(scores), 0)
    assert len(steps) >= 2
    batches = gate.suffix.batches
    dense = Session(here.analysis.model)
    losses = HeadLosses([dense.run(b) for b in batches])
    kept: dict[str, tuple[int, ...]] = {}
    base, factor = dict(gate.start), decay(len(scores), 0.06, 6.0) if chosen.exp else 1.0
    unit = {step.tolerance / step.saved for step in steps}
    for number, step in enumerate(steps):
        before = here.analysis.cost(kept).macs
        kept[step.group] = step.kept
        session = Session(cut(here.analysis, here.plan(kept)))
        found = {
            "logits": sum(losses.batch(i, session.run(b))["logits"] for i, b in enumerate(batches))
        }
        assert found["logits"] == pytest.approx(step.losses["logits"], rel=1e-4)
        assert step.saved == before - here.analysis.cost(kept).macs > 0
        assert step.tolerance == pytest.approx(
            min(unit) * step.saved if chosen.proportional else 0.06 * factor**number
        )
        assert found["logits"] <= base["logits"] * (1 + step.tolerance) * (1 + 1e-4)
        base["logits"] = max(base["logits"], found["logits"])


def test_savings_are_in_the_unit_of_the_budget() -> None:
    """Of a budget on parameters: in MACs the last, widest layers would save next to nothing."""
    here = search()
    here = replace(
        here,
        constraints=replace(
            here.constraints, budgets={"params": 0.8 * here.analysis.cost().params}
        ),
    )
    chosen = PagcpSettings(initial_rate=0.05)
    kept: dict[str, tuple[int, ...]] = {}
    for step in visit(
        here, _Gate(here, chosen), chosen, here.scores("l2"), {}, list(here.scores("l2")), 0
    ):
        before = here.analysis.cost(kept).params
        kept[step.group] = step.kept
        assert step.saved == before - here.analysis.cost(kept).params


def test_channels_are_given_back_until_the_budget_is_just_met() -> None:
    """With one more channel of any group the budget is missed."""
    here = replace(
        search(), constraints=Constraints({"macs": 0.85 * search().analysis.cost().macs})
    )
    kept = dict(pagcp(here).kept)
    assert here.met(kept)
    for group, left in kept.items():
        more = tuple(sorted({*left, min(set(range(here.analysis.group(group).size)) - set(left))}))
        assert not here.met({**kept, group: more})


def test_trials_are_measured_with_refitted_weights() -> None:
    """The suffix gives the losses of the entire refitted network.

    Weights of masked inputs are zero, and cutting half of a group costs less than without a refit.
    """
    here = search()
    plain, gate = (_Gate(here, PagcpSettings(refit=r)) for r in (False, True))
    assert gate.start == plain.start
    less = better = 0
    base: dict[str, tuple[int, ...]] = {}
    for group, values in here.scores("l2").items():
        kept = keep_best(values, max(1, len(values) // 2))
        model = gate.suffix.changed({**base, group: kept})
        session = Session(model)
        found = summed(gate.of, [session.run(b) for b in gate.suffix.batches])
        assert gate.losses(base, group, kept) == pytest.approx(found, rel=1e-5)
        better += gate.losses({}, group, kept)["logits"] < plain.losses({}, group, kept)["logits"]
        less += 1
        base = base or {group: kept}
    assert better >= 0.8 * less > 3
    reader = next(
        li
        for li in linears(here.analysis)
        if li.ids is not None and not here.analysis.keep(li.ids, here.analysis.removed(base)).all()
    )
    gone = ~here.analysis.keep(reader.ids, here.analysis.removed(base))
    name = next(
        n for n in gate.suffix.changed(base).proto.graph.node if reader.out in n.output
    ).input[1]
    weight = gate.suffix.changed(base).weights[name].array()
    assert (
        not weight[:, gone].any()
        and (
            weight[:, ~gone] != here.analysis.model.weights[reader.weight.tensor].array()[:, ~gone]
        ).any()
    )


def test_tolerances_grow_only_with_relax() -> None:
    """With a rate that no cut meets, the published search ends; with `relax` the rate grows."""
    with pytest.raises(TargetError, match="relax"):
        pagcp(search(initial_rate="1e-9", relax="1", refit="false", proportional="false"))
    rates = pagcp(
        search(budget=0.97, initial_rate="1e-3", relax="4", refit="false", proportional="false")
    ).decided_by["rate"]
    assert rates[0] == 1e-3 and rates[-1] > 1e-3
    assert all(b in (a, 4 * a) for a, b in zip(rates, rates[1:], strict=False))


def test_a_trial_stops_early_only_if_it_would_fail() -> None:
    """A trial fails exactly if the sums over all batches exceed the bounds, after fewer batches."""
    here = search()
    gate = _Gate(here, PagcpSettings())
    for group, values in list(here.scores("l2").items())[:4]:
        for share in (0.9, 0.5):
            kept = keep_best(values, max(1, int(len(values) * share)))
            whole = gate.suffix({}, group, kept)
            for factor in (0.999, 1.0, 1.001):
                bounds = {t: v * factor for t, v in whole.items()}
                assert (gate.suffix({}, group, kept, bounds) is None) == (factor < 1)
    bounds = {t: v * 1.0001 for t, v in gate.start.items()}
    before = gate.suffix.ran
    assert gate.suffix({}, group, kept[:1], bounds) is None and gate.suffix.ran - before == 1


def test_the_cheapest_steps_keep_their_order() -> None:
    here = search()
    chosen = PagcpSettings(**PUBLISHED)
    gate = _Gate(here, chosen)
    scores = here.scores("l2")
    steps = visit(here, gate, chosen, scores, {}, list(scores), 0)
    chosen = cheapest(steps, 0.5)
    assert [s.group for s in chosen] == [s.group for s in steps if s in chosen]
    assert max(s.cost for s in chosen) <= min(s.cost for s in steps if s not in chosen)


def test_the_budget_is_met_and_a_search_resumes(tmp_path: Path) -> None:
    whole = pagcp(replace(search(), journal=Journal(tmp_path / "whole.jsonl")))
    assert search().met(whole.kept)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_bytes(
        b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:20]
    )
    journal = Journal(tmp_path / "part.jsonl")
    again = pagcp(replace(search(), journal=journal))
    assert again.kept == whole.kept and journal.measured == len(lines) - len(lines) // 2


def test_own_losses_by_task(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "def losses(outputs, samples):\n"
        "    x = outputs['logits']\n"
        "    assert len(samples) == len(x)\n"
        "    return {'size': 1 + (x ** 2).mean(1), 'zero': 1.0}\n"
    )
    plan = pagcp(search(losses=f"{tmp_path / 'own.py'}:losses"))
    assert set(plan.decided_by["tasks"]) == {"size", "zero"} and plan.decided_by["tasks"][
        "zero"
    ] == [1.0, 1.0]


def test_errors_name_the_option() -> None:
    with pytest.raises(UsageError, match="initial_rate"):
        pagcp(search(initial_rat="1"))
    with pytest.raises(UsageError, match="initial_rate"):
        pagcp(search(initial_rate="-1"))
    with pytest.raises(TargetError, match="raise round"):
        pagcp(search(budget=0.3, round="1", topk="0.01"))


def test_sequential_is_accepted_and_cannot_be_turned_off() -> None:
    assert pagcp(search(sequential="true")).kept == pagcp(search()).kept
    with pytest.raises(UsageError, match="one after the other; leave the option out"):
        pagcp(search(sequential="false"))


def test_names_of_earlier_releases() -> None:
    """Plug-in methods report progress by `tell` and hand over a model by `made`."""
    lines: list[str] = []
    models: list[object] = []
    here = replace(search(), progress=lines.append, on_model=models.append)
    with pytest.warns(DeprecationWarning, match="Search.progress"):
        here.tell("a step")
    with pytest.warns(DeprecationWarning, match="Search.on_model"):
        here.made(here.analysis.model)
    assert lines == ["a step"] and models == [here.analysis.model]


def test_pagcp_in_a_run(tmp_path: Path) -> None:
    out = tmp_path / "p.onnx"
    how = {
        "method": "pagcp",
        "method_option": {"topk": "0.9"},
        "repair": "none",
        "engine": "none",
        "round_to": 4,
    }
    result = optimize(
        FILES.model, out, data=str(FILES.calibration), samples=64, target="macs=85%", **how
    )
    assert result.report.after["macs"] <= 0.85 * result.report.before["macs"]
    assert (
        result.plan.decided_by["method"] == "pagcp"
        and result.plan.decided_by["criterion"] == "auto"
    )
    rows = [
        json.loads(line) for line in (tmp_path / "p.run" / "search.jsonl").read_text().splitlines()
    ]
    assert rows and all(np.isfinite(list(r["losses"].values())).all() for r in rows if r["losses"])
