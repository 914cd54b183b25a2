"""No search: scores and an allocator, once."""

from __future__ import annotations

from onnxprune.allocators.base import allocate
from onnxprune.search.base import Search
from onnxprune.types import Plan


def one_shot(search: Search) -> Plan:
    """The plan of an allocator on the scores of the whole model."""
    return allocate(search.allocate, search.context, search.scores("l2"), search.constraints)
