"""The laws of a cut, on graphs drawn at random from the ops of the rule table."""

from __future__ import annotations

import pytest
from cut_laws import LAWS, MOST_BLOCKS, check
from hypothesis import seed, settings

EXAMPLES, NESTED_EXAMPLES = 100, 40
LONG_LAWS = ("cut", "second cut", "unknown op")
LONG_PARTS, LONG_EXAMPLES = 4, 500


@pytest.mark.parametrize("law", LAWS)
def test_law_holds(law: str) -> None:
    """Each law has a seed of its own: without one, all would see the same graphs."""
    examples = NESTED_EXAMPLES if law.startswith("nested") else EXAMPLES
    number = list(LAWS).index(law)
    seed(number)(settings(max_examples=examples)(check(LAWS[law])))()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(LONG_PARTS))
def test_laws_hold_on_large_graphs(part: int) -> None:
    def all_laws(model, number):
        for law in LONG_LAWS:
            LAWS[law](model, number)

    seed(part)(settings(max_examples=LONG_EXAMPLES)(check(all_laws, MOST_BLOCKS)))()
