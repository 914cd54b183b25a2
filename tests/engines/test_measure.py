"""Statistics of interleaved timing, on known times."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.engines.measure import (
    MOST_QUANTILES,
    NOISE_LIMIT,
    Schedule,
    interleave,
    machine_warnings,
    noise_warnings,
    ratio,
    summarize,
)
from onnxprune.errors import UsageError


def test_contenders_take_turns_and_the_order_reverses() -> None:
    calls: list[str] = []

    def sampler(name: str, ms: float):
        def sample(count: int) -> list[float]:
            calls.append(name)
            return [ms] * count

        return sample

    times = interleave(
        {"a": sampler("a", 2.0), "b": sampler("b", 100.0)},
        Schedule(seconds=0.0, warmup=2, min_rounds=4),
    )
    assert calls[4:] == list("abbaabba")
    assert times["a"].shape == (4, 5)  # 5 * 2 ms make the block of 10 ms
    assert times["b"].shape == (4, 1)


def test_first_inference_of_a_block_is_dropped() -> None:
    times = interleave(
        {"a": lambda count: [9.0] + [1.0] * (count - 1)}, Schedule(seconds=0.0, min_rounds=2)
    )
    assert np.all(times["a"] == 1.0)


def test_statistics_equal_numpy() -> None:
    times = np.random.default_rng(0).gamma(4.0, 1.0, (20, 50))
    result = summarize("e", "m", times)
    assert (result.samples, result.rounds, result.min_ms) == (1000, 20, times.min())
    assert result.median_ms == pytest.approx(np.median(times))
    assert result.p99_ms == pytest.approx(np.quantile(times, 0.99))
    assert result.iqr_ms == pytest.approx(np.quantile(times, 0.75) - np.quantile(times, 0.25))
    assert result.as_dict()["iqr_ms"] == result.iqr_ms
    # fewer than the inferences, with the same distribution
    assert len(result.times_ms) == MOST_QUANTILES and list(result.times_ms) == sorted(
        result.times_ms
    )
    assert np.mean(result.times_ms) == pytest.approx(result.mean_ms, rel=0.01)


def test_ratio_is_paired_so_common_drift_cancels() -> None:
    drift = np.linspace(1, 10, 30)[:, None]  # the machine gets ten times slower while both run
    noise = np.random.default_rng(1).normal(1, 0.01, (2, 30, 8))
    result = ratio("a", 2.0 * drift * noise[0], "b", drift * noise[1])
    assert result.low <= 2.0 <= result.high
    assert result.high - result.low < 0.05
    assert result.clear


def test_interval_of_equal_contenders_holds_one_about_as_often_as_stated() -> None:
    generator = np.random.default_rng(2)
    trials = 100
    held = sum(
        not ratio("a", x[0], "b", x[1]).clear for x in generator.normal(1, 0.1, (trials, 2, 15, 1))
    )
    # 95 % nominal; the percentile method on 15 rounds falls a little short
    assert held >= 0.85 * trials


def test_noise_is_reported_with_its_figure() -> None:
    rows = np.linspace(1, 2, 16)[:, None] * np.ones(4)
    noisy, quiet = summarize("e", "noisy", rows), summarize("e", "quiet", np.ones((16, 4)))
    assert noisy.noise > NOISE_LIMIT > quiet.noise
    (warning,) = noise_warnings([noisy, quiet])
    assert "noisy" in warning and f"{noisy.noise:.0%}" in warning


def test_more_threads_than_processors_warns() -> None:
    assert any("pass --bench-threads" in w for w in machine_warnings(100_000))


def test_threads_that_may_migrate_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert any("pin" in w for w in machine_warnings(1))
    assert not any("pin" in w for w in machine_warnings(1, cores=(0,)))
    assert not any("pin" in w for w in machine_warnings(3))


def test_empty_schedule_is_an_error() -> None:
    with pytest.raises(UsageError):
        Schedule(warmup=0)
    with pytest.raises(UsageError):
        Schedule(min_rounds=5, max_rounds=4)


def test_measuring_ends_when_the_ratio_is_precise() -> None:
    generator = np.random.default_rng(3)

    def sampler(deviation: float):
        return lambda count: generator.normal(1.0, deviation, count).tolist()

    schedule = Schedule(seconds=0.0, min_rounds=12, max_rounds=12, precise=0.01)
    longer = Schedule(seconds=60.0, min_rounds=7, max_rounds=150, precise=0.01)
    for deviation, most in ((0.001, 7), (0.2, 150)):
        contenders = {"a": sampler(deviation), "b": sampler(deviation)}
        rounds = len(interleave(contenders, longer)["a"])
        assert rounds <= most
        assert (rounds == 7) == (deviation < 0.01)
        assert len(interleave(contenders, schedule)["a"]) == 12
    # without a second contender there is no ratio
    assert len(interleave({"a": sampler(0.001)}, Schedule(60.0, 1, 7, 20, 0.01))["a"]) == 20
