"""Random networks of realistic blocks: exact cuts, and runs that end.

The seeds are fixed; `tools/hunt MINUTES` tries others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from tests.robustness.hunting import check_cut, check_run, hunt_one, options_of, runs
from tests.robustness.realistic import network

CUTS_PER_TEST = 25
RUNS_PER_TEST = 6
# an odd seed draws one of 22 sets of options, an even one has the defaults
RUN_SEEDS = [0, 2, 4, 6, *range(1, 44, 2)]
MORE_RUN_SEEDS = [seed for seed in range(60) if seed not in RUN_SEEDS]


def test_network_of_a_seed_is_reproducible() -> None:
    first, second = network(3), network(3)
    assert first.model.SerializeToString() == second.model.SerializeToString()
    rng_a, rng_b = np.random.default_rng(0), np.random.default_rng(0)
    for name, value in first.feeds(rng_a).items():
        np.testing.assert_array_equal(value, second.feeds(rng_b)[name])


@pytest.mark.parametrize("first", range(0, 300, CUTS_PER_TEST))
def test_cut_equals_masked_original(first: int) -> None:
    checked = 0
    for seed in range(first, first + CUTS_PER_TEST):
        faults = hunt_one(seed, with_runs=False)
        assert not faults, "\n".join(map(str, faults or ()))
        checked += faults is not None
    assert checked > 0.8 * CUTS_PER_TEST, "onnxruntime rejects too many of the generated networks"


def assert_sound(seeds: Sequence[int]) -> None:
    """Check a cut and a run of each network."""
    for seed in seeds:
        faults = hunt_one(seed)
        assert not faults, "\n".join(map(str, faults or ()))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(RUN_SEEDS), RUNS_PER_TEST))
def test_runs_end_without_a_fault(first: int) -> None:
    assert_sound(RUN_SEEDS[first : first + RUNS_PER_TEST])


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(MORE_RUN_SEEDS), RUNS_PER_TEST))
def test_more_runs_end_without_a_fault(first: int) -> None:
    assert_sound(MORE_RUN_SEEDS[first : first + RUNS_PER_TEST])


def test_seeds_of_runs_draw_every_set_of_options() -> None:
    drawn, possible = (
        {json.dumps(options_of(seed)) for seed in seeds} for seeds in (RUN_SEEDS, range(200))
    )
    assert drawn == possible


def test_wrong_cut_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search can find a fault: a cut of other channels is one."""
    import onnxprune

    net = next(n for n in map(network, range(50)) if runs(n) and n.kinds[0] == "vision")
    cut = onnxprune.cut
    monkeypatch.setattr(onnxprune, "cut", lambda analysis, plan: cut(analysis, _rotate(plan)))
    assert list(check_cut(net))


def _rotate(plan):
    """Return the plan with every list of kept channels shifted by one."""
    from dataclasses import replace

    kept = {
        name: tuple(sorted((i + 1) % plan.sizes[name] for i in indices))
        for name, indices in plan.kept.items()
    }
    return replace(plan, kept=kept)


def test_options_cover_every_criterion_and_method() -> None:
    from onnxprune.criteria import CRITERIA
    from onnxprune.search import METHODS

    drawn = [options_of(seed) for seed in range(200)]
    assert {o.get("criterion") for o in drawn} >= {c for c in CRITERIA if ":" not in c}
    assert {o.get("method") for o in drawn} >= set(METHODS) - {"one-shot"}


def test_rejected_run_is_a_fault() -> None:
    net = next(n for n in map(network, range(50)) if runs(n))
    assert list(check_run(net, {"target": "macs=70%", "criterion": "no-such-criterion"}))
