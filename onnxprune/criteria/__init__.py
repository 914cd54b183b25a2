"""Importance of channels.

A criterion is a function (Context) -> Scores; a higher score means keep. Groups that it cannot
score are left out of the result and stay unpruned.
"""

from __future__ import annotations

from onnxprune.registry import Registry

CRITERIA = Registry(
    "criterion",
    "onnxprune.criteria",
    {
        "reconstruction": (
            "onnxprune.criteria.reconstruction:reconstruction",
            "output error after removal with the consumers refitted (needs data)",
        ),
        "l1": ("onnxprune.criteria.magnitude:l1", "sum of absolute weights of the filter"),
        "l2": ("onnxprune.criteria.magnitude:l2", "Euclidean norm of the filter"),
        "largest_l1": (
            "onnxprune.criteria.magnitude:largest_l1",
            "negated l1: the largest filters are removed first",
        ),
        "largest_l2": (
            "onnxprune.criteria.magnitude:largest_l2",
            "negated l2: the largest filters are removed first",
        ),
        "bn_scale": (
            "onnxprune.criteria.magnitude:bn_scale",
            "absolute BatchNormalization scale; needs a graph that has it",
        ),
        "bn_scale*l1": (
            "onnxprune.criteria.magnitude:bn_scale_l1",
            "absolute BatchNormalization scale times l1",
        ),
        "activation_mean": (
            "onnxprune.criteria.activation:activation_mean",
            "mean absolute activation at the consumers (needs data)",
        ),
        "activation_variance": (
            "onnxprune.criteria.activation:activation_variance",
            "variance of the activation at the consumers (needs data)",
        ),
        "apoz": (
            "onnxprune.criteria.activation:apoz",
            "share of activations above zero (needs data)",
        ),
        "activation*weight": (
            "onnxprune.criteria.activation:activation_weight",
            "activation RMS times the norm of the consumers' weights (needs data)",
        ),
        "taylor": (
            "onnxprune.criteria.gradient:taylor",
            "absolute first-order change of the loss (needs data)",
        ),
        "fisher": (
            "onnxprune.criteria.gradient:fisher",
            "squared first-order change of the loss, per sample (needs data)",
        ),
        "random": (
            "onnxprune.criteria.control:random",
            "seeded random scores, as the control of other criteria",
        ),
    },
)

__all__ = ["CRITERIA"]
