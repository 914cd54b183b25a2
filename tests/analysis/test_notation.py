"""Notation of the rule table: parsing, rejection, and the patterns of the table."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.analysis.notation import LEADING, ONE, SPATIAL, letters, parse
from onnxprune.analysis.rules import RULES, Rule

ROWS = {op: rule for op, rule in RULES.items() if isinstance(rule, Rule)}


def test_a_grouped_convolution() -> None:
    pattern = parse("n (g c) *, (g o) c *, (g o) -> n (g o) *")
    assert pattern.inputs == (("n", ("g", "c"), SPATIAL), (("g", "o"), "c", SPATIAL), (("g", "o"),))
    assert pattern.outputs == (("n", ("g", "o"), SPATIAL),)
    assert pattern.contracted == ("c",)


def test_marks_and_absent_axes() -> None:
    pattern = parse("... m k, k -> ... m 1, ")
    assert pattern.inputs == ((LEADING, "m", "k"), ("k",))
    assert pattern.outputs == ((LEADING, "m", ONE), ())
    assert pattern.contracted == ("k",)
    assert letters((("a", "b"), "c", SPATIAL, ONE)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("n c", "no '->'"),
        ("n c ? -> n", "cannot read '?'"),
        ("(n c -> n", "cannot read"),
        ("n * * -> n", "twice"),
        ("a ... -> a", "must come first"),
        ("() -> a", "cannot read"),
    ],
)
def test_what_is_refused_is_quoted(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        parse(text)
    assert repr(text) in str(caught.value)


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "c", "(a b)", "*"]), max_size=4, unique=True),
        min_size=1,
        max_size=4,
    )
)
def test_operands_stay_in_order(operands: list[list[str]]) -> None:
    pattern = parse(", ".join(" ".join(o) for o in operands) + " -> a")
    assert len(pattern.inputs) == len(operands)
    for tokens, words in zip(pattern.inputs, operands, strict=False):
        assert [t if isinstance(t, str) else f"({' '.join(t)})" for t in tokens] == words


@pytest.mark.parametrize("op", ROWS)
def test_rows_speak_of_their_own_letters(op: str) -> None:
    rule = ROWS[op]
    pattern = parse(rule.pattern)
    known = {x for axes in (*pattern.inputs, *pattern.outputs) for x in letters(axes)} | set(
        "*.@# "
    )
    for field in (rule.mixes, rule.freeze, rule.sums, *rule.macs, *rule.let, *rule.refit.values()):
        assert set(field) <= known, field
