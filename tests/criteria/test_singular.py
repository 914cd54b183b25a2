"""Singular second moments, and tensors that several products read, do not end a run."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import net

import onnxprune
from onnxprune.criteria.elimination import invert_blocks, refit_weight
from onnxprune.ir.io import load

# `a` is the first operand of two products of activations
TWO_PRODUCTS = """float[2,6,8] x | float[8,12] w1, float[8,12] w2, float[8,12] w3, float[6,5] w4
| a = MatMul(x, w1); b = MatMul(x, w2); c = MatMul(x, w3); d = Transpose<perm=[0,2,1]>(b);
e = Transpose<perm=[0,2,1]>(c); s = MatMul(a, d); t = MatMul(a, e); u = Add(s, t);
y = MatMul(u, w4)"""


def test_singular_blocks_are_inverted_by_eigenvalues() -> None:
    singular = np.array([[1.0, 1.0], [1.0, 1.0]])
    inverses = invert_blocks(np.stack([np.eye(2), singular]))
    np.testing.assert_allclose(inverses[0], np.eye(2), atol=1e-12)
    np.testing.assert_allclose(singular @ inverses[1] @ singular, singular, atol=1e-12)


def test_regular_blocks_are_inverted_exactly() -> None:
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((5, 3, 3))
    blocks = factors @ factors.swapaxes(1, 2) + np.eye(3)
    np.testing.assert_array_equal(invert_blocks(blocks), np.linalg.inv(blocks))


def test_refit_with_repeated_inputs_is_finite() -> None:
    inverse_moments = np.ones((4, 4))
    out = refit_weight(np.arange(8.0).reshape(2, 4), inverse_moments, np.array([1, 2]))
    assert np.isfinite(out).all() and not out[:, [1, 2]].any()


@pytest.mark.parametrize("copies", [1, 2])
def test_run_on_a_tensor_of_two_products_and_repeated_channels(copies: int, tmp_path) -> None:
    model = load(net(TWO_PRODUCTS))
    x = np.random.default_rng(0).standard_normal((40, 6, 8 // copies)).astype(np.float32)
    data = tmp_path / "x.npz"
    np.savez(data, x=np.tile(x, (1, 1, copies)))
    options = {"target": "macs=80%", "round_to": 1, "engine": "none"}
    result = onnxprune.optimize(model, data=str(data), **options)
    assert result.report.after["macs"] < result.report.before["macs"]
