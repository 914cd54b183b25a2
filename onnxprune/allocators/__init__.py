"""Choice of widths that meet a budget.

An allocator is a function (Context, Scores, steps) -> Ranking; steps of low value are taken first.
"""

from __future__ import annotations

from onnxprune.registry import Registry

ALLOCATORS = Registry(
    "allocator",
    "onnxprune.allocators",
    {
        "uniform": ("onnxprune.allocators.uniform:uniform", "the same share of every group"),
        "threshold": (
            "onnxprune.allocators.threshold:threshold",
            "one threshold on scores relative to their group's mean",
        ),
        "divergence": (
            "onnxprune.allocators.divergence:divergence",
            "least divergence of the model's outputs per saving (needs data)",
        ),
        "divergence-unweighted": (
            "onnxprune.allocators.divergence:unweighted",
            "the same, residual streams counted like branches (needs data)",
        ),
        "layer-error": (
            "onnxprune.allocators.knapsack:layer_error",
            "least reconstruction error of the layers per saving",
        ),
        "knapsack": (
            "onnxprune.allocators.knapsack:knapsack",
            "least damage per saving on the budget's cost",
        ),
    },
)

__all__ = ["ALLOCATORS"]
