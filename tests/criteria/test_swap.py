"""Swaps against recomputed errors and exhaustive search."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from onnxprune import demo
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import swap as module
from onnxprune.criteria.base import Context
from onnxprune.criteria.elimination import Consumer, eliminate, inverse
from onnxprune.criteria.reconstruction import group_consumers, moments
from onnxprune.criteria.swap import swap
from onnxprune.errors import UsageError
from onnxprune.ir.io import load
from onnxprune.run.adapter import open_data_for
from onnxprune.run.pipeline import make_plan
from onnxprune.run.recipe import Recipe

SIZE, REMOVED = 8, 4


def consumer(
    rng: np.random.Generator, taps: int, outputs: int = 5, absolute: bool = True
) -> Consumer:
    """Return a consumer of SIZE channels with correlated columns in random order."""
    k = SIZE * taps + 2  # two columns are another group's
    x = rng.standard_normal((k, 4)) @ rng.standard_normal((4, 500)) + 0.4 * rng.standard_normal(
        (k, 500)
    )
    w = rng.standard_normal((outputs, k))
    return Consumer(
        x @ x.T / 500, w.T @ w, rng.permutation(k)[: SIZE * taps].reshape(SIZE, taps), absolute
    )


def error(consumers: list[Consumer], removed: np.ndarray) -> float:
    """Return the error after a refit, by the closed form."""
    total = 0.0
    for r in consumers:
        s, g = r.index[np.asarray(removed)].ravel(), inverse(r.moments)
        total += r.scale * float(np.trace(r.weight[np.ix_(s, s)] @ np.linalg.inv(g[np.ix_(s, s)])))
    return total


@pytest.mark.parametrize("taps", [(1,), (3,), (4, 1)])
def test_change_of_a_pair_is_the_difference_of_errors(taps: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(taps))
    consumers = [consumer(rng, t, absolute=False) for t in taps]
    removed, kept = np.array([1, 4, 6]), np.array([0, 2, 3, 5, 7])
    evaluated = [module._evaluate_swaps(r, inverse(r.moments), removed, kept) for r in consumers]
    change = sum(r.scale * d for r, (_, d) in zip(consumers, evaluated, strict=False))
    before = error(consumers, removed)
    assert sum(
        r.scale * e for r, (e, _) in zip(consumers, evaluated, strict=False)
    ) == pytest.approx(before, rel=1e-9)
    for j in range(len(removed)):
        for c in range(len(kept)):
            after = error(consumers, np.append(np.delete(removed, j), kept[c]))
            assert before + change[j, c] == pytest.approx(after, rel=1e-7)


def test_swaps_reduce_the_error_and_mostly_reach_the_best_set() -> None:
    reached, first = 0, 0
    for seed in range(40):
        consumers = [consumer(np.random.default_rng(seed), 2)]
        start = eliminate(consumers, SIZE)[0][:REMOVED]
        best = min(error(consumers, np.array(s)) for s in combinations(range(SIZE), REMOVED))
        removed, errors = swap(consumers, SIZE, start, 20)
        assert len(removed) == len(set(removed.tolist())) == REMOVED
        assert errors[0] == pytest.approx(error(consumers, start)) and errors[-1] == pytest.approx(
            error(consumers, removed)
        )
        assert all(b < a for a, b in zip(errors, errors[1:], strict=False))
        reached += errors[-1] <= best * (1 + 1e-3)
        first += errors[0] <= best * (1 + 1e-3)
    assert reached >= 36 and reached > first, (reached, first)


def test_no_swap_without_removed_or_kept_channels() -> None:
    consumers = [consumer(np.random.default_rng(0), 1)]
    assert swap(consumers, SIZE, np.array([], int), 5)[0].size == 0
    assert swap(consumers, SIZE, np.arange(SIZE), 5)[0].tolist() == list(range(SIZE))
    assert len(swap(consumers, SIZE, np.arange(4), 0)[1]) == 1


def test_swaps_keep_widths_and_reduce_the_error() -> None:
    files = demo.files()
    plain, other = (make_plan(files.model, recipe) for recipe in recipes(0, 50))
    assert {g: len(k) for g, k in plain.kept.items()} == {g: len(k) for g, k in other.kept.items()}
    assert plain.kept != other.kept
    analysis, (recipe,) = analyze(load(files.model)), recipes(0)
    context = Context(analysis, open_data_for(analysis.model, recipe), batch_size=recipe.batch_size)
    known = moments(context)
    before, after = (
        sum(
            error(
                group_consumers(analysis, g, *known), np.setdiff1d(np.arange(p.sizes[g]), p.kept[g])
            )
            for g in p.kept
        )
        for p in (plain, other)
    )
    assert after < before


def recipes(*swaps: int) -> list[Recipe]:
    """Return recipes of the demo network with these numbers of swaps."""
    return [
        Recipe(target="macs=40%", data=str(demo.files().calibration), samples=64, swaps=n)
        for n in swaps
    ]


def test_swaps_need_criterion_reconstruction() -> None:
    with pytest.raises(UsageError, match="reconstruction"):
        make_plan(
            demo.files().model,
            Recipe(target="macs=50%", criterion="l2", allocate="uniform", swaps=3),
        )
