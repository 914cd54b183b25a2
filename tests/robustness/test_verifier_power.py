"""The verification catches corruptions of right cuts."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.verifier_power import (
    CAUGHT,
    CORRUPTIONS,
    MISSED,
    cuts,
    is_failure,
    measure,
    report,
    summarize,
    try_corruption,
)


def test_corruptions_with_an_effect_are_caught() -> None:
    rows = measure(range(8), times=1)
    assert {row["what"] for row in rows} >= set(CORRUPTIONS) - {"an output dropped"}
    assert not [row for row in rows if is_failure(row)]
    assert sum(row["result"] == CAUGHT for row in rows) > len(rows) // 3
    assert "missed from the limit on (0.0001 in float32, 0.004 in float16): 0." in report(
        summarize(rows)
    )


def test_miss_is_a_failure_from_the_limit_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verification without power is noticed."""
    from benchmarks import verifier_power

    _, right = next(cuts(range(8)))
    accepted = verifier_power.verify(right.analysis, right.plan, right.pruned, right.feeds)
    monkeypatch.setattr(verifier_power, "verify", lambda *_: accepted)
    row = try_corruption(right, CORRUPTIONS["two filters swapped"], np.random.default_rng(0))
    assert row is not None and row["result"] == MISSED
    assert is_failure({**row, "precision": "float32"})
    assert not is_failure({**row, "precision": "float32", "effect": 1e-6})
