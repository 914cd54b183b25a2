"""The demo network and its data, written by tools/train_demo.py.

The network is a residual classifier of 8 x 8 handwritten digits with a concatenation and depthwise
convolutions; its top-1 accuracy is 99.4 % on the evaluation images, which neither training nor
calibration uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class DemoFiles(NamedTuple):
    """Paths of the demo's files.

    Attributes
    ----------
    model
        ONNX, input `images` float32 (batch, 1, 8, 8) in [0, 1], output `logits` (batch, 10).
    calibration
        .npz with `images` (256, 1, 8, 8), without labels.
    evaluation
        .npz with `images` (500, 1, 8, 8) and `labels` int64 (500,).
    """

    model: Path
    calibration: Path
    evaluation: Path


def files() -> DemoFiles:
    """Return the paths of the demo's model, calibration data and evaluation data."""
    folder = Path(__file__).parent
    return DemoFiles(
        folder / "digits.onnx", folder / "digits_calibration.npz", folder / "digits_evaluation.npz"
    )
