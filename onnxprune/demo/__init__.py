"""The demo network and its data, as tools/train_demo.py wrote them.

A residual + concat + depthwise classifier of 8 x 8 handwritten digits: top-1 is 99.4 % on the evaluation images, which neither training nor
calibration has seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class DemoFiles(NamedTuple):
    """Where the files of the demo are.

    model: ONNX, input `images` float32 (batch, 1, 8, 8) in [0, 1], output `logits` (batch, 10);
    calibration: .npz with `images` (256, 1, 8, 8), no labels; evaluation: .npz with `images` (500, 1, 8, 8) and `labels` int64 (500,).
    """

    model: Path
    calibration: Path
    evaluation: Path


def files() -> DemoFiles:
    """Paths of the demo's model, calibration data and evaluation data."""
    folder = Path(__file__).parent
    return DemoFiles(
        folder / "digits.onnx", folder / "digits_calibration.npz", folder / "digits_evaluation.npz"
    )
