"""Scale statistics: definition, batches, and constant or incomparable values."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.metrics.scale import MIN_TOTAL, ScaleStatistics


def statistics_of(*batches: np.ndarray) -> ScaleStatistics:
    statistics = ScaleStatistics()
    for batch in batches:
        statistics.add(batch)
    return statistics


def test_squared_distance_from_the_mean_over_samples() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (7, 4, 5)).astype(np.float32)
    at_once, parts = statistics_of(values), statistics_of(values[:2], values[2:])
    assert at_once.total == pytest.approx(np.square(values - values.mean(0)).sum(), rel=1e-5)
    assert parts.total == pytest.approx(at_once.total) and parts.samples == 7
    assert at_once.scale == pytest.approx((7 / at_once.total) ** 0.5)


@pytest.mark.parametrize(
    "batches",
    [[np.full((4, 3), 2.0)], [np.ones((1, 2)), np.full((2, 5), 1.0)], [np.float64(2.0)]],
    ids=["alike", "shapes", "scalar"],
)
def test_distance_from_zero_if_samples_cannot_be_compared(batches: list[np.ndarray]) -> None:
    assert statistics_of(*batches).total == pytest.approx(sum(np.square(b).sum() for b in batches))


def test_constant_and_infinite_positions_count_as_zero() -> None:
    """The fill value of a mask does not hide errors elsewhere."""
    values = np.random.default_rng(0).normal(size=(5, 3))
    filled = np.concatenate([values, np.full((5, 1), -1e9), np.full((5, 1), -np.inf)], 1)
    assert statistics_of(filled).total == pytest.approx(statistics_of(values).total)


def test_one_value_per_sample() -> None:
    assert statistics_of(np.array([1.0, 3.0])).total == pytest.approx(2)


def test_zeros_have_the_least_total_and_scale_one() -> None:
    nothing = statistics_of(np.zeros((3, 2)))
    assert nothing.total == MIN_TOTAL and nothing.scale == 1
