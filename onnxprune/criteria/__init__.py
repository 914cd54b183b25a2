"""How much a channel matters. A criterion is a function (Context) -> Scores, higher = keep; a group it cannot score is left out and stays whole."""

from __future__ import annotations

from onnxprune.registry import Registry

CRITERIA = Registry(
    "criterion",
    "onnxprune.criteria",
    {
        "reconstruction": (
            "onnxprune.criteria.reconstruction:reconstruction",
            "error that removal leaves after the consumers are refitted (needs data)",
        ),
        "l1": ("onnxprune.criteria.magnitude:l1", "sum of absolute weights of the filter"),
        "l2": ("onnxprune.criteria.magnitude:l2", "Euclidean norm of the filter"),
        "largest_l1": (
            "onnxprune.criteria.magnitude:largest_l1",
            "l1 negated: the largest go first",
        ),
        "largest_l2": (
            "onnxprune.criteria.magnitude:largest_l2",
            "l2 negated: the largest go first",
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
            "mean absolute activation as the consumers see it (needs data)",
        ),
        "activation_variance": (
            "onnxprune.criteria.activation:activation_variance",
            "variance of the activation as the consumers see it (needs data)",
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
        "random": ("onnxprune.criteria.control:random", "the control: seeded random scores"),
    },
)

__all__ = ["CRITERIA"]
