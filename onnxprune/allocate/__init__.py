"""Which widths meet a budget. An allocator is a function (Analysis, steps, what) -> priorities: steps of low priority are taken first."""

from __future__ import annotations

from onnxprune.registry import Registry

ALLOCATORS = Registry(
    "allocator",
    "onnxprune.allocators",
    {
        "uniform": ("onnxprune.allocate.uniform:uniform", "the same share of every group"),
        "threshold": ("onnxprune.allocate.threshold:threshold", "one threshold on scores relative to their group's mean"),
        "knapsack": ("onnxprune.allocate.knapsack:knapsack", "least damage for what it saves on the budget's cost"),
    },
)

__all__ = ["ALLOCATORS"]
