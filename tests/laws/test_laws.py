"""The laws of a cut, on graphs drawn at random from the ops of the rule table."""

from __future__ import annotations

import pytest
from cut_laws import LAWS, MOST_BLOCKS, check
from hypothesis import seed, settings
from onnx import ModelProto

EXAMPLES, NESTED_EXAMPLES = 100, 40
LONG_LAWS = ("cut", "second cut", "unknown op")
LARGE_EXAMPLES, PARTS, EXAMPLES_PER_PART = 200, 4, 500


@pytest.mark.parametrize("law", LAWS)
def test_law_holds(law: str) -> None:
    """Each law has a seed of its own: without one, all would see the same graphs."""
    examples = NESTED_EXAMPLES if law.startswith("nested") else EXAMPLES
    number = list(LAWS).index(law)
    seed(number)(settings(max_examples=examples)(check(LAWS[law])))()


def all_long_laws(model: ModelProto, number: int) -> None:
    """Check the laws of LONG_LAWS."""
    for law in LONG_LAWS:
        LAWS[law](model, number)


@pytest.mark.slow
def test_laws_hold_on_large_graphs() -> None:
    seed(0)(settings(max_examples=LARGE_EXAMPLES)(check(all_long_laws, MOST_BLOCKS)))()


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_laws_hold_on_many_large_graphs(part: int) -> None:
    seed(part)(settings(max_examples=EXAMPLES_PER_PART)(check(all_long_laws, MOST_BLOCKS)))()
