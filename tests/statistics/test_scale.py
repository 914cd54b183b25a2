"""The spread of values over samples: its definition, in batches, and where it has none."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.statistics.scale import MIN_TOTAL, ScaleStatistics


def spread(*batches: np.ndarray) -> ScaleStatistics:
    found = ScaleStatistics()
    for batch in batches:
        found.add(batch)
    return found


def test_squared_distance_from_the_mean_over_samples() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (7, 4, 5)).astype(np.float32)
    whole, parts = spread(values), spread(values[:2], values[2:])
    assert whole.total == pytest.approx(np.square(values - values.mean(0)).sum(), rel=1e-5)
    assert parts.total == pytest.approx(whole.total) and parts.samples == 7
    assert whole.scale == pytest.approx((7 / whole.total) ** 0.5)


@pytest.mark.parametrize(
    "batches",
    [[np.full((4, 3), 2.0)], [np.ones((1, 2)), np.full((2, 5), 1.0)], [np.float64(2.0)]],
    ids=["alike", "shapes", "scalar"],
)
def test_from_zero_where_samples_cannot_be_compared(batches: list[np.ndarray]) -> None:
    assert spread(*batches).total == pytest.approx(sum(np.square(b).sum() for b in batches))


def test_constant_and_infinite_positions_count_for_nothing() -> None:
    """A mask's fill does not make errors elsewhere small."""
    values = np.random.default_rng(0).normal(size=(5, 3))
    filled = np.concatenate([values, np.full((5, 1), -1e9), np.full((5, 1), -np.inf)], 1)
    assert spread(filled).total == pytest.approx(spread(values).total)


def test_one_value_a_sample() -> None:
    assert spread(np.array([1.0, 3.0])).total == pytest.approx(2)


def test_zeros_have_none() -> None:
    nothing = spread(np.zeros((3, 2)))
    assert nothing.total == MIN_TOTAL and nothing.scale == 1
