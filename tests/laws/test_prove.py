"""tools/prove: the quick part of every row, its record, and that it finds wrong rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from proving.check import prove_row
from proving.record import result_of, row_of
from proving.table import NO_WORLDS, demands_bits, rows, spaces

from onnxprune.analysis.movement import MOVES, transpose
from onnxprune.analysis.ops.elementwise import along_axis, elementwise
from onnxprune.analysis.ops.reductions import reduce
from onnxprune.analysis.rule import Row, Rule
from onnxprune.analysis.rules import RULES

ROOT = Path(__file__).resolve().parents[2]
WORLDS, CUTS = 3, 6
# Embeddings are normalized where they are gathered, along the only axis of channels.
FROZEN = ("EmbedLayerNormalization", "QEmbedLayerNormalization")
PROVED = [op for op in rows() if op not in NO_WORLDS]


@cache
def recorded() -> dict[str, Any]:
    """Return the rows of docs/proved.json."""
    rows = json.loads((ROOT / "docs" / "proved.json").read_text(encoding="utf-8"))["rows"]
    assert isinstance(rows, dict)
    return rows


@pytest.mark.parametrize("op", PROVED)
def test_quick_part_agrees_with_the_record(op: str) -> None:
    assert spaces(op), f"add a space of worlds for {op} to tools/proving, or a reason to NO_WORLDS"
    outcome = prove_row(op, WORLDS, CUTS)
    assert not outcome.faults, outcome.faults[0]
    assert outcome.worlds, dict(outcome.unevaluated)
    assert op in recorded(), f"run tools/prove {op} --record, then tools/generate_docs.py"
    row, quick = recorded()[op], row_of(outcome, demands_bits(op), WORLDS)
    assert not row["faults"]
    assert quick["demanded"] == row["demanded"]
    assert result_of(quick) in ("frozen", result_of(row))


def test_record_has_no_other_rows_and_proves_something() -> None:
    assert set(recorded()) == set(PROVED)
    for op, row in recorded().items():
        if op in FROZEN:
            assert result_of(row) == "frozen"
            continue
        assert row["worlds_without_effect"] + row["worlds_frozen"] < row["worlds"], op


def test_rows_without_worlds_exist_and_have_a_reason() -> None:
    assert all(op in rows() and why and not spaces(op) for op, why in NO_WORLDS.items())


# Rows that are wrong, each in another way: mixing not seen, an axis taken for another, a factor in
# the wrong order, zeros that are not neutral.
WRONG: dict[str, Row] = {
    "Softmax": elementwise,
    "LogSoftmax": along_axis(-2),
    "CumSum": Rule("..., -> ..."),
    "ReduceMin": reduce(linear=True),
    "ReduceMean": reduce(linear=True),
    "LayerNormalization": Rule("... c, c, c -> ... c, ... 1, ... 1"),
    "DepthToSpace": Rule(
        "n (c a b) h w -> n c (h a) (w b)", {"a": "blocksize", "b": "blocksize"}, freeze="abhw"
    ),
    "Gemm": Rule("m k, k n, n -> m n"),
    "Conv": Rule("n (g c) *, (g o) c *, (g o) -> n (g o) *", {"g": "group"}, freeze="*"),
    "AveragePool": Rule("n c * -> n c *"),
}


@pytest.mark.parametrize("op", WRONG)
def test_wrong_row_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, op, WRONG[op])
    assert prove_row(op, 40, CUTS).faults


def test_wrong_movement_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOVES, "Transpose", lambda node: transpose(node)[::-1])
    assert not prove_row("Transpose", 10, CUTS).faults
    monkeypatch.setitem(MOVES, "Transpose", lambda node: [transpose(node)[0][::-1]])
    assert prove_row("Transpose", 10, CUTS).faults


def test_worlds_are_always_the_same() -> None:
    first, second = (prove_row("Gather", 3, CUTS) for _ in range(2))
    assert (first.plans, first.exact, first.frozen) == (second.plans, second.exact, second.frozen)


def prove(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tools/prove."""
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "prove", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_command_reports_rows_and_refuses_unknown_ones() -> None:
    done = prove("Relu", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Relu") and "equal to the bit" in done.stdout
    assert "1 row, 1 world," in done.stdout
    unknown = prove("Rellu")
    assert unknown.returncode == 2
    assert "did you mean Relu?" in unknown.stderr
