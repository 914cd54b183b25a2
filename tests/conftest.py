"""Shared fixtures and the profiles of Hypothesis.

`pytest --hypothesis-profile=random` draws new examples in every run; the default profile draws the
same ones everywhere.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
# fail on machines under load only; data that is slow to draw is no fault of the code under test
LOAD_DEPENDENT = [
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.too_slow,
]

settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    suppress_health_check=LOAD_DEPENDENT,
    print_blob=True,
)
settings.register_profile("random", settings.get_profile("fixed"), derandomize=False)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with many slow tests first, so that no worker is left alone with a long one."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def zoo() -> Path:
    """Return the folder of trained models: ONNXPRUNE_ZOO, or ../shared/zoo next to the checkout."""
    folder = Path(os.environ.get("ONNXPRUNE_ZOO", ROOT.parent / "shared" / "zoo"))
    if not (folder / "models.json").is_file():
        pytest.skip(f"no trained models at {folder}; set ONNXPRUNE_ZOO")
    return folder
