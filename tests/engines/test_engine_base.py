"""Inputs and options of a measurement."""

from __future__ import annotations

import numpy as np
import pytest
from engine_nets import residual

from onnxprune.engines.base import (
    EngineOptions,
    TensorSpec,
    fix_shapes,
    random_feeds,
    static_inputs,
)
from onnxprune.engines.cpu import vector_channels
from onnxprune.errors import UsageError


def test_dynamic_batch_counts_as_one() -> None:
    assert static_inputs(residual(size=9), {})["x"].shape == (1, 3, 9, 9)
    assert static_inputs(residual(size=9), {"x": (4, 3, 9, 9)})["x"].shape == (4, 3, 9, 9)


@pytest.mark.parametrize("shapes", [{"x": (1, 4, 9, 9)}, {"x": (1, 3, 9)}, {"z": (1,)}])
def test_shapes_that_do_not_fit_are_named(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError, match=next(iter(shapes))):
        static_inputs(residual(size=9), shapes)


def test_an_unknown_axis_names_the_flag() -> None:
    model = residual(size=9).edit()
    model.proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(UsageError, match="--shape x:"):
        static_inputs(model, {})
    assert [
        d.dim_value
        for d in fix_shapes(model, {"x": (1, 3, 9, 9)})
        .proto.graph.input[0]
        .type.tensor_type.shape.dim
    ] == [1, 3, 9, 9]
    assert model.proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param == "height"


def test_random_inputs_are_seeded_and_of_the_right_type() -> None:
    specs = {
        "a": TensorSpec((2, 3), np.dtype(np.float16)),
        "i": TensorSpec((4,), np.dtype(np.int64)),
        "b": TensorSpec((), np.dtype(bool)),
    }
    first, second = random_feeds(specs, 1), random_feeds(specs, 1)
    assert all(
        np.array_equal(first[k], second[k])
        and first[k].dtype == specs[k].dtype
        and first[k].shape == specs[k].shape
        for k in specs
    )


@pytest.mark.parametrize("bad", [{"threads": 0}, {"precision": "f8"}, {"level": "most"}])
def test_invalid_options_are_errors(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        EngineOptions(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "channels"),
    [({"avx2", "avx512f"}, 16), ({"sse2", "avx2"}, 8), ({"asimd"}, 4), (set(), 4)],
)
def test_block_follows_the_instruction_set(flags: set[str], channels: int) -> None:
    assert vector_channels(frozenset(flags)) == channels
