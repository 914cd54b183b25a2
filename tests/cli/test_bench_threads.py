"""Threads that compute and threads that are measured are two options."""

from __future__ import annotations

import json

import pytest

from onnxprune import demo
from onnxprune.cli import run
from onnxprune.parallel import MOST_THREADS, count_cpus
from onnxprune.run.adapter import engine_options
from onnxprune.run.recipe import Recipe

MODEL = str(demo.files().model)


def test_all_cpus_compute_and_one_thread_is_measured() -> None:
    recipe = Recipe.of({})
    assert recipe.compute_threads == min(count_cpus(), MOST_THREADS)
    assert engine_options(recipe).threads == 1
    recipe = Recipe.of({"threads": 3, "bench_threads": 2})
    assert recipe.compute_threads == 3 and engine_options(recipe).threads == 2


@pytest.mark.parametrize("flag", ["--bench-threads", "--threads"])
def test_bench_takes_its_threads_by_the_former_name_too(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", MODEL, flag, "2", "--seconds", "0.1", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measurements"]
    assert {row["threads"] for row in measured} == {2}
