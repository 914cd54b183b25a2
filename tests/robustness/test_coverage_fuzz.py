"""Inputs that coverage-guided fuzzing has found, and valid ones, through the fuzzing targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import ModelError
from tests.robustness import coverage_fuzz
from tests.robustness.fuzz_targets import TARGETS, try_input

FINDS = sorted((Path(__file__).parent / "finds").iterdir())  # named TARGET-...


@pytest.mark.parametrize("path", FINDS, ids=lambda path: path.name)
def test_input_that_was_found_is_accepted_or_rejected(path: Path) -> None:
    assert try_input(path.name.split("-")[0], path.read_bytes()) == ""


@pytest.mark.parametrize("target", TARGETS)
def test_targets_take_their_seeds(target: str) -> None:
    seeds = list(TARGETS[target].seeds().values())
    assert [try_input(target, data) for data in seeds[:: max(1, len(seeds) // 4)]] == [""] * len(
        seeds[:: max(1, len(seeds) // 4)]
    )


@pytest.mark.parametrize("target", ["load", "files"])
def test_mutated_seeds_are_accepted_or_rejected(target: str) -> None:
    rng = np.random.default_rng(0)
    for data in list(TARGETS[target].seeds().values())[::20]:
        changed = coverage_fuzz.change(data, rng)
        assert try_input(target, changed) == ""


def test_find_is_minimized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_fuzz, "_failure", lambda _, data: "here" if b"x" in data else "")
    (tmp_path / "find").write_bytes(b"abc" * 10 + b"x" + b"def" * 10)
    coverage_fuzz.minimize("load", tmp_path / "find")
    assert (tmp_path / "find").read_bytes() == b"x"


def test_failure_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> None:
        raise KeyError("x") if data else ModelError("model-empty", "empty")

    monkeypatch.setitem(TARGETS, "load", TARGETS["load"].__class__(fail, dict))
    assert try_input("load", b"") == "" and try_input("load", b"x") == "KeyError: 'x'"
