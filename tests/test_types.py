"""The type hints hold; setup.cfg says what is read for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_type_hints_hold() -> None:
    pytest.importorskip("mypy")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "setup.cfg",
        "--cache-dir",
        os.devnull,
        "--hide-error-context",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert not done.returncode, done.stdout + done.stderr
