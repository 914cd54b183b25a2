"""The benchmark of random networks counts outcomes and finds faults."""

from __future__ import annotations

import pytest

from benchmarks.random_networks import COMPLETED, SMALL_WIDTHS, measure, report, summarize
from benchmarks.random_networks import variants_of as variants
from onnxprune.criteria import CRITERIA

RUNS = {"l2": {**SMALL_WIDTHS, "criterion": "l2", "fast": True}}
BAD = {"bad": {**SMALL_WIDTHS, "criterion": "no-such-criterion"}}


def test_default_and_every_criterion_are_run() -> None:
    names = {"default", *(c for c in CRITERIA if ":" not in c)}
    assert names <= set(variants(0)) == set(variants(1))


def test_outcomes_and_faults_are_counted() -> None:
    rows = [{"network": seed, **measure(seed, RUNS)} for seed in (4, 10)]
    rows.append({"network": 4, **measure(4, BAD)})
    summary = summarize(rows)
    assert summary["networks"] == 3
    assert summary["outcomes"]["cut"] == {COMPLETED: 3}
    assert summary["outcomes"]["l2"] == {COMPLETED: 2}
    assert [network for network, _ in summary["faults"]] == [4]
    assert "3 networks, faults: 1" in report(summary)


def test_wrong_cut_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmarks.random_networks

    monkeypatch.setattr(benchmarks.random_networks, "check_cut", lambda _: iter(["differs"]))
    row = measure(4, {})
    assert row["faults"] == ["cut: differs"] and row["outcomes"]["cut"] != COMPLETED
