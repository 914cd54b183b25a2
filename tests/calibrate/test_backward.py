"""Mask gradients by the backward graph against finite differences and against torch autograd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from backward_cases import CASES, Case
from onnxprune.calibrate.backward import DRAWN, LABELS, VECTOR, Gradient, Loss, Place, feeds_of, gradient_model
from onnxprune.calibrate.backward.rules import TABLE
from onnxprune.errors import ModelError, UsageError
from onnxprune.model.canonicalize import canonicalize
from onnxprune.model.io import Model, load
from onnxprune.model.nodes import label
from onnxprune.model.runtime import Session

SINGLE = 1e-4  # float32 sums of a few hundred terms against float64
STEP = 1e-5  # of central differences in float64: error about STEP**2
DOUBLE = 1e-9  # float64 against float64: rounding through up to 60 layers
KINKED = 2e-2  # a unit that lies within float32 rounding of a kink falls on either side; that changes single gradients, not their bulk


def in_torch(model: Model) -> Any:
    """The graph as a float64 torch module."""
    torch = pytest.importorskip("torch")
    from onnxprune.tune.bridge import to_module

    module = to_module(model).eval().double()
    module.constants = {n: v.double() if v.is_floating_point() else v for n, v in module.constants.items()}
    return torch, module


def mask_derivatives(model: Model, feeds: dict[str, np.ndarray], place: Place, vector: np.ndarray) -> np.ndarray:
    """(samples, channels) derivative of v'f by a factor on each channel of an input, a sample at a time, by central differences in float64."""
    torch, module = in_torch(model)
    tensors = {n: torch.from_numpy(v) for n, v in feeds.items()}
    x = feeds[place.tensor]
    found = np.zeros((x.shape[0], x.shape[place.axis]))
    for n, c in np.ndindex(found.shape):
        index = tuple(n if i == 0 else c if i == place.axis else slice(None) for i in range(x.ndim))
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] *= 1 + sign * STEP
            with torch.no_grad():
                (y,) = module({**tensors, place.tensor: torch.from_numpy(moved)}).values()
            ends.append(float((y.double().numpy() * vector).sum()))
        found[n, c] = (ends[0] - ends[1]) / (2 * STEP)
    return found


def run(gradient: Gradient, feeds: dict[str, np.ndarray], extra: dict[str, np.ndarray]) -> dict[Place, np.ndarray]:
    """Outputs by place."""
    values = Session(gradient.model).run({**feeds, **extra})
    return {place: values[name] for place, name in gradient.outputs.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_equals_finite_differences(case: Case) -> None:
    """Every data input, every axis: float32 by onnxruntime against float64 central differences of the forward op in torch."""
    feeds = case.feeds()
    model = canonicalize(load(case.model()))
    places = [Place(n, axis) for n, v in feeds.items() for axis in range(1, v.ndim)]
    gradient = gradient_model(model, places, [Loss(VECTOR, f"y{case.head}")], {n: v.shape for n, v in feeds.items()}, case.samples)
    assert not gradient.blocked
    vector = feeds_of(gradient.feeds, np.random.default_rng(1))
    found = run(gradient, {n: v.astype(np.float32) for n, v in feeds.items()}, vector)
    assert set(found) == set(places)
    expected = {place: mask_derivatives(model, feeds, place, next(iter(vector.values()))) for place in places}
    scale = max(np.abs(e).max() for e in expected.values())
    for place, rows in expected.items():
        rows = rows if case.samples > 1 else rows.sum(0, keepdims=True)
        assert np.abs(found[place] - rows).max() <= SINGLE * scale, f"{place}: {found[place]} instead of {rows}"


def test_every_row_of_the_table_is_tested() -> None:
    tested = {case.op for case in CASES}
    elsewhere = {"Where", "CastLike", "Swish", "RMSNormalization"}
    assert set(TABLE) - tested == elsewhere
