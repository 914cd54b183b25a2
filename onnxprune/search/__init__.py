"""Strategies over many cuts. A method is a function (Search) -> Plan on the analysis that it is given; what comes after a plan is the same for all."""

from __future__ import annotations

from onnxprune.registry import Registry

ONE_SHOT = "one-shot"  # scores and an allocator, once: no search

METHODS = Registry(
    "method",
    "onnxprune.methods",
    {
        ONE_SHOT: ("onnxprune.search.oneshot:one_shot", "scores and an allocator, once"),
        "pagcp": (
            "onnxprune.search.pagcp:pagcp",
            "group after group, the largest share that keeps every output head within its tolerance",
        ),
        "group-fisher": (
            "onnxprune.search.group_fisher:group_fisher",
            "globally the least squared mask gradient over cost, scored anew after every few channels",
        ),
        "layer-selection": (
            "onnxprune.search.layer_selection:layer_selection",
            "rounds: the groups that save most for what their cut alone costs, checked together",
        ),
    },
)

__all__ = ["METHODS", "ONE_SHOT"]
