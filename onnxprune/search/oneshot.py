"""The default method: scores and an allocator, once, without a search."""

from __future__ import annotations

from onnxprune.allocators.allocate import allocate
from onnxprune.search.base import Search
from onnxprune.types import Plan


def one_shot(search: Search) -> Plan:
    """Return the allocator's plan for the scores of the original model."""
    return allocate(search.allocate, search.context, search.scores("l2"), search.constraints)
