"""Gradients with onnxruntime alone: a backward graph of plain ONNX ops, for activations only.

`gradient_model` builds it; `rules.TABLE` is what it knows, one row an op.
"""

from __future__ import annotations

from onnxprune.autodiff.build import MOMENTS, ROWS, WHOLE, Blocked, Gradient, Place, gradient_model
from onnxprune.autodiff.losses import DRAWN, LABELS, VECTOR, Feed, Loss, feeds_of

__all__ = [
    "DRAWN",
    "LABELS",
    "MOMENTS",
    "ROWS",
    "VECTOR",
    "WHOLE",
    "Blocked",
    "Feed",
    "Gradient",
    "Loss",
    "Place",
    "feeds_of",
    "gradient_model",
]
