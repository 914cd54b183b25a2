"""Shared fixtures: where the trained models are, if they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def zoo() -> Path:
    """Folder of trained models (ONNXPRUNE_ZOO, or ../shared/zoo beside the checkout)."""
    folder = Path(os.environ.get("ONNXPRUNE_ZOO", ROOT.parent / "shared" / "zoo"))
    if not (folder / "models.json").is_file():
        pytest.skip(f"no trained models at {folder}; set ONNXPRUNE_ZOO")
    return folder
