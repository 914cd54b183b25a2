"""Operators that onnxruntime cannot run: a cut equals the masked original by onnx's reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_laws import random_plan
from graph_text import net
from new_rows import BY_REFERENCE
from onnx.reference import ReferenceEvaluator

from onnxprune.analysis.movement import MOVES
from onnxprune.analysis.no_rule import REASONS
from onnxprune.analysis.rules import RULES
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.surgery.cut import cut
from onnxprune.surgery.masking import masked

TOLERANCE = 1e-5  # of float32, relative to the largest value


def evaluate(model: Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Return the first output by onnx's reference implementation."""
    return ReferenceEvaluator(onnx.load_from_string(to_bytes(model))).run(None, feeds)[0]


@pytest.mark.parametrize("name", BY_REFERENCE)
def test_cut_equals_masked_by_reference(name: str) -> None:
    case = BY_REFERENCE[name]
    analysis = analyze(load(net(case.text, opset=case.opset)))
    assert tuple(g.size for g in analysis.groups) == case.groups
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 4, 6, 6)).astype(np.float32)}
    plan = random_plan(analysis, rng)
    expected = evaluate(masked(analysis, plan), feeds)
    actual = evaluate(cut(analysis, plan), feeds)
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_every_operator_has_a_rule_or_a_reason() -> None:
    """The newest operator set that is installed has no operator that the table overlooks."""
    standard = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    followed = {"If", "Loop", "Scan", "Constant"}
    assert standard - RULES.keys() - MOVES.keys() - followed == REASONS.keys() & standard
    assert not REASONS.keys() & (RULES.keys() | MOVES.keys())


def test_reason_is_named() -> None:
    text = """float[2,4,6,6] x | float[8,4,3,3] w1
    | a = Conv(x, w1); y = NonZero(a) | int64[4,n] y"""
    analysis = analyze(load(net(text)))
    reasons = {f.reason for f in analysis.why("a")}
    assert "no rule for NonZero (which rows it returns depends on the data)" in reasons
