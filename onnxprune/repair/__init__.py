"""New values for the weights that are left. A repair is a function (Analysis, Plan, pruned Model, Context) -> Model."""

from __future__ import annotations

from onnxprune.registry import Registry

REPAIRS = Registry(
    "repair",
    "onnxprune.repairs",
    {
        "none": ("onnxprune.repair.bias:none", "the weights stay as they were cut"),
        "least-squares": (
            "onnxprune.repair.least_squares:least_squares",
            "every linear node refitted in lock-step with the whole network (needs data)",
        ),
        "batchnorm": (
            "onnxprune.repair.batchnorm:batchnorm",
            "running means and variances of BatchNormalization estimated anew (needs data)",
        ),
        "bias": (
            "onnxprune.repair.bias:bias",
            "the mean of what was cut goes into the consumers' biases (needs data)",
        ),
    },
)

__all__ = ["REPAIRS"]
