"""New values for the weights that are left. A repair is a function (Analysis, Plan, pruned Model, Context) -> Model."""

from __future__ import annotations

from onnxprune.registry import Registry

REPAIRS = Registry(
    "repair",
    "onnxprune.repairs",
    {
        "none": ("onnxprune.repair.bias:none", "the weights stay as they were cut"),
        "bias": ("onnxprune.repair.bias:bias", "the mean of what was cut goes into the consumers' biases (needs data)"),
    },
)

__all__ = ["REPAIRS"]
