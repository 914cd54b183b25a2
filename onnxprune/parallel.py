"""Threads of the computing process: independent calls side by side, each on one thread.

Operators and BLAS compute on the calling thread. Threads of theirs would spin while they wait, and
round sums in other ways; calls side by side give the same bytes for any number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import lru_cache
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


MOST_THREADS = 8  # by default: each holds a batch and its results


def count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    # a container may allow fewer CPUs than the machine has
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yield the results of a function in the order of the items.

    Items are drawn on the calling thread, in order and at most `threads` ahead of the results, so
    that random numbers and the memory of results do not depend on how fast the threads are.

    Parameters
    ----------
    function
        Computes mostly outside of Python, and calls no `ordered_map` of several threads itself.
    threads
        Calls at a time; 1 computes on the calling thread.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    pool = _open_pool(threads, os.getpid())
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            # settings such as numpy's errstate belong to a context
            waiting.append(pool.submit(copy_context().run, function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@lru_cache(maxsize=1)
def _open_pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the pool of a process; a forked one has none of its parent's threads."""
    return ThreadPoolExecutor(threads, "onnxprune")
