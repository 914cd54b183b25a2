"""Compensation for removed channels by new values of the kept weights.

A repair is a function (Analysis, Plan, pruned Model, Context) -> Model.
"""

from __future__ import annotations

from onnxprune.registry import Registry

REPAIRS = Registry(
    "repair",
    "onnxprune.repairs",
    {
        "none": ("onnxprune.repair.bias:none", "weights are cut and not changed otherwise"),
        "least-squares": (
            "onnxprune.repair.least_squares:least_squares",
            "every linear node refitted to the original's outputs, in graph order (needs data)",
        ),
        "batchnorm": (
            "onnxprune.repair.batchnorm:batchnorm",
            "running means and variances of BatchNormalization re-estimated (needs data)",
        ),
        "bias": (
            "onnxprune.repair.bias:bias",
            "mean of the removed channels added to the consumers' biases (needs data)",
        ),
    },
)

__all__ = ["REPAIRS"]
