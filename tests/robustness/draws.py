"""Random choices that mutators share."""

from __future__ import annotations

from typing import Any

import numpy as np

# plausible lengths, limits of integer types, and lengths that no machine can hold
SIZES = (
    *(-(2**63), -(2**31), -9, -1, 0, 1, 2, 3, 7, 255, 65536),
    *(2**24, 2**28, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1),
)


def pick(rng: np.random.Generator, items: Any) -> Any:
    """Return one of the items."""
    return items[int(rng.integers(len(items)))]


def size(rng: np.random.Generator) -> int:
    """Return a length, which may be impossible."""
    return int(pick(rng, SIZES))
