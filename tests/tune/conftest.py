"""Fixtures: the demo network, which tunes in seconds, a damaged copy, and labeled digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxprune.data.labeled import LabeledData, open_labeled
from onnxprune.demo import files
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.ir.weights import from_array


@pytest.fixture(scope="session")
def demo() -> Model:
    return load(files().model)


@pytest.fixture(scope="session")
def damaged(demo: Model) -> Model:
    """Return the demo with the smaller half of every filter set to zero."""
    weights = dict(demo.weights)
    for name, weight in demo.weights.items():
        value = weight.array()
        if value.ndim == 4:
            weights[name] = from_array(
                np.where(np.abs(value) > np.quantile(np.abs(value), 0.5), value, 0).astype(
                    np.float32
                )
            )
    return replace(demo, weights=weights)


@pytest.fixture(scope="session")
def digits(demo: Model) -> tuple[LabeledData, LabeledData]:
    """Return 250 labeled digits to tune with and 250 others to evaluate."""
    data = open_labeled(files().evaluation, Session(demo).inputs)
    return data.split(0.5)
