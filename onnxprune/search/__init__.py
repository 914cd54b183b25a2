"""Search methods that try many cuts before they return a plan.

A method is a function `(Search) -> Plan`. Analysis, cut, verification and repair are the same for
all methods, so their plans can be compared at equal cost.
"""

from __future__ import annotations

from onnxprune.registry import Registry

ONE_SHOT = "one-shot"  # the default: scores and an allocator, once, without a search

METHODS = Registry(
    "method",
    "onnxprune.methods",
    {
        ONE_SHOT: ("onnxprune.search.oneshot:one_shot", "scores and an allocator, once"),
        "pagcp": (
            "onnxprune.search.pagcp:pagcp",
            "per group, the largest cut that keeps the loss of every output within a tolerance",
        ),
        "group-fisher": (
            "onnxprune.search.group_fisher:group_fisher",
            "remove the channels with the least squared mask gradient per cost, then score again",
        ),
        "layer-selection": (
            "onnxprune.search.layer_selection:layer_selection",
            "rounds: cut the groups that save most for the quality lost, and check them together",
        ),
    },
)

__all__ = ["METHODS", "ONE_SHOT"]
