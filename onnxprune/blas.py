"""Limit of the threads of BLAS."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# read by each library when it is loaded: numpy's and scipy's OpenBLAS, MKL, BLIS, Accelerate
_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@contextmanager
def limit_blas() -> Iterator[None]:
    """Let BLAS compute on the calling thread, in libraries that are loaded now or later.

    The matrices here are small: further threads mostly wait, which BLAS does by spinning, and sums
    of other parts have other rounding. A library that is loaded within the context keeps the limit.
    """
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(dict.fromkeys(_VARIABLES, "1"))
    try:
        # without numpy no BLAS is loaded yet, and the import below would take time for nothing
        if "numpy" not in sys.modules:
            yield
            return
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
