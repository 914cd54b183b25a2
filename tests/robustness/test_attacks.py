"""Some attacks and carriers through the command line; the others are measured for the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.robustness.attacks import ATTACKS
from tests.robustness.measure import ENVIRONMENT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs the usage of a process")

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["Tile of 10 values 30,000 x 3,000 times", "an .npz whose directory claims 2^60 bytes"]


@pytest.mark.parametrize("what", QUICK)
def test_attack_stays_within_limits(what: str) -> None:
    # from a process of its own: a process inherits the peak of memory of the one that starts it
    done = subprocess.run(
        [sys.executable, "-m", "tests.robustness.attacks", "--only", what],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    verdict, message = done.stdout.splitlines()
    assert verdict.startswith(f"ok    {what}"), done.stdout
    assert message.split()[0] == "1", done.stdout


def test_attacks_cost_more_than_their_files(tmp_path: os.PathLike[str]) -> None:
    assert len(ATTACKS) > 40 and set(QUICK) <= set(ATTACKS)
