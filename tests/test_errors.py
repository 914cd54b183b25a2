"""Errors for unknown names: the nearest, all of a short list, or some of a long one."""

from __future__ import annotations

import pytest

from onnxprune.errors import MOST_KNOWN, MOST_NEAR, unknown

MANY = [f"layer{i}/Conv" for i in range(MOST_KNOWN + 1)]


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("layer7/Comv", MANY, "did you mean 'layer7/Conv'?"),
        ("RELU", ["a/Relu", "b"], "did you mean 'a/Relu'?"),
        ("zzzz", ["b", "a"], "known: a, b"),
        ("zzzz", [], "known: none"),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_exist(
    name: str, known: list[str], hint: str
) -> None:
    assert unknown("tensor", name, known, most=MOST_NEAR).message == (
        f"unknown tensor {name!r}; {hint}"
    )


@pytest.mark.parametrize(
    ("known", "most"), [(MANY, MOST_KNOWN), (MANY[: MOST_NEAR + 1], MOST_NEAR)]
)
def test_of_a_long_list_the_nearest_are_named(known: list[str], most: int) -> None:
    _, _, hint = unknown("tensor", "3zzzzzzzzzz", known, most=most).message.partition("; ")
    assert hint.startswith("nearest names: 'layer3/Conv', ") and hint.count("'") == 2 * MOST_NEAR
