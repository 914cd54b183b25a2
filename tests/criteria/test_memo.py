"""Memoized results of a context: computed once, and never shared by unequal contexts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graph_text import net

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.criteria.memo import Kind, Memo
from onnxprune.data.dataset import Data, synthetic
from onnxprune.ir.io import load

TEXT = "float[n,4,6,6] x | float[8,4,3,3] w1, float[5,8,1,1] w2 | a = Conv(x, w1); y = Conv(a, w2)"
NUMBER = Kind[int]("number")


def analyzed(scale: float = 1.0, **options: Any) -> Analysis:
    """The network with its first weight scaled."""
    proto = net(TEXT)
    weight = next(t for t in proto.graph.initializer if t.name == "w1")
    values = np.frombuffer(weight.raw_data, np.float32)
    weight.raw_data = (values * np.float32(scale)).tobytes()
    return analyze(load(proto), **options)


def inputs(seed: int = 0) -> Data:
    return synthetic({"x": (["n", 4, 6, 6], "tensor(float)")}, samples=4, seed=seed)


def counter() -> Callable[[], int]:
    """Return 0, 1, ... at each call."""
    numbers = iter(range(100))
    return lambda: next(numbers)


def test_computed_once_per_context_and_arguments() -> None:
    context, compute = Context(analyzed(), inputs()), counter()
    assert [context.memoize(NUMBER, compute) for _ in range(2)] == [0, 0]
    assert [context.memoize(NUMBER, compute, "other") for _ in range(2)] == [1, 1]
    assert context.memoize(Kind[int]("number"), compute) == 2


def test_an_equal_context_shares_results() -> None:
    context, compute = Context(analyzed(), inputs()), counter()
    first = context.memoize(NUMBER, compute)
    assert replace(context, analysis=analyzed(), data=inputs()).memoize(NUMBER, compute) == first


@pytest.mark.parametrize(
    "change",
    [
        {"analysis": analyzed(2.0)},
        {"analysis": analyzed(freeze=("a",))},
        {"data": inputs(1)},
        {"data": None},
        {"seed": 1},
        {"batch_size": 2},
        {"threads": 2},
        {"flip": True},
    ],
)
def test_unequal_contexts_do_not_share_results(change: dict[str, Any]) -> None:
    """Though they hold the same memo, as contexts that one search derives from another do."""
    context, compute = Context(analyzed(), inputs()), counter()
    first = context.memoize(NUMBER, compute)
    other = replace(context, **change)
    assert other.memo is context.memo
    assert other.memoize(NUMBER, compute) != first
    assert context.memoize(NUMBER, compute) == first


def test_a_new_memo_is_empty() -> None:
    context, compute = Context(analyzed(), inputs()), counter()
    assert context.memoize(NUMBER, compute) == 0
    assert replace(context, memo=Memo()).memoize(NUMBER, compute) == 1
