"""Some attacks and carriers through the command line; the others are measured for the page."""

from __future__ import annotations

import os
import sys

import pytest

from tests.robustness.attacks import ATTACKS, try_attack
from tests.robustness.measure import ENVIRONMENT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs the usage of a process")

QUICK = ["Tile of 10 values 30,000 x 3,000 times", "an .npz whose directory claims 2^60 bytes"]


@pytest.mark.parametrize("what", QUICK)
def test_attack_stays_within_limits(what: str) -> None:
    cost = try_attack(what, ENVIRONMENT)
    assert cost.ok and cost.code == 1, cost


def test_attacks_cost_more_than_their_files(tmp_path: os.PathLike[str]) -> None:
    assert len(ATTACKS) > 40 and set(QUICK) <= set(ATTACKS)
