"""Shared fixtures of the tests of calibration data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six 20x16 color images in two subfolders; image i has red = 10 i, and a ramp in green."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "photos"
    for i in range(6):
        pixels = np.zeros((20, 16, 3), np.uint8)
        pixels[..., 0], pixels[..., 1], pixels[..., 2] = 10 * i, np.arange(16) * 16, 255
        place = folder / f"class{i % 2}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(place)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image either")
    return folder
