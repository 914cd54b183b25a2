"""Isotonic regression against scipy's, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from onnxprune.criteria.reconstruction import isotonic


@pytest.mark.parametrize("slope", [-0.1, 0.0, 0.02, 0.3])
@pytest.mark.parametrize("digits", [1, 16])
def test_values_equal_those_of_scipy(slope: float, digits: int) -> None:
    rng = np.random.default_rng(0)
    for length in [1, 2, 3, *rng.integers(4, 300, 100)]:
        values = np.round(rng.standard_normal(length), digits) + slope * np.arange(length)
        values *= 10.0 ** rng.integers(-9, 9)
        np.testing.assert_array_equal(isotonic(values), isotonic_regression(values).x)


def test_a_default_run_does_not_import_the_optimizers_of_scipy() -> None:
    code = """
import sys
from onnxprune import demo, optimize
model, data, _ = demo.files()
optimize(model, data=data, samples=32, engine="none")
print("scipy.optimize" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
