"""Rare collections of garbage, for code that builds many objects that live long."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Python's own, 700 new objects, grow the share of the collections in the time of an analysis with
# the number of its nodes, to a fifth at 100,000: each looks at many objects, and frees none
_THRESHOLDS = 50_000, 20, 100


@contextmanager
def rare_collections() -> Iterator[None]:
    """Search for cycles of objects rarely, unless the caller does so more rarely or never."""
    before = gc.get_threshold()
    if 0 < before[0] < _THRESHOLDS[0]:
        gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
