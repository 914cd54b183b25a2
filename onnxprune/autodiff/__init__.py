"""Gradients of activations as ONNX nodes, so that onnxruntime computes them without torch.

`gradient_model` builds the backward graph; `rules.TABLE` holds one gradient rule per operator.
"""

from __future__ import annotations

from onnxprune.autodiff.build import gradient_model
from onnxprune.autodiff.losses import BINARY, DRAWN, LABELS, VECTOR, Feed, Loss, feeds_of
from onnxprune.autodiff.places import MOMENTS, ROWS, WHOLE, Blocked, Gradient, Place

__all__ = [
    "BINARY",
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
