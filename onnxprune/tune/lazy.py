"""Import of torch that explains how to install it."""

from __future__ import annotations

from onnxprune.errors import MissingExtraError

try:
    import torch
except ImportError as problem:
    raise MissingExtraError("torch", "torch", "fine-tuning") from problem

__all__ = ["torch"]
