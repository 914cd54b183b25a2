"""Values of outputs that are no tensors: sequences, maps and optionals, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_array(value: Any) -> np.ndarray | None:
    """Return the numbers or strings of an output as one array.

    Maps give their values in the order of their keys, which ZipMap repeats for every row.

    Returns
    -------
    ndarray or None
        Tensors as they are, the entries of sequences flattened one after the other; None for
        an empty optional.
    """
    if isinstance(value, dict):
        # sorted, since two models need not list the keys in the same order
        return np.asarray([value[key] for key in sorted(value)])
    if not isinstance(value, (list, tuple)):
        return None if value is None else np.asarray(value)
    entries = [array.ravel() for item in value if (array := as_array(item)) is not None]
    return np.concatenate(entries) if entries else np.zeros(0)
