"""Joint refit of query and key: against explicit least squares, and where it does not apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from repair_reference import Repaired, initializer, node_of

from onnxprune.repair import attention, least_squares
from onnxprune.repair.attention import best_mixture

NONLINEAR = ["Tanh", "Relu", "Elu", "Abs", "LeakyRelu", "HardSwish"]
SINGLE = 1e-4  # of the largest value
HEADS = (
    "float[n,7,10] x | float[10,24] wq, float[24] bq, float[10,24] wk, float[24] bk, "
    "float[10,24] wv, float[24] bv, float[24,10] wo,"
    "int64[4] split = {0, 0, 3, 8}, int64[3] join = {0, 0, -1}, float scale = {0.35} |"
)
REST = (
    "k0 = MatMul(x, wk); k1 = Add(k0, bk); k2 = Reshape(k1, split); "
    "k = Transpose<perm=[0,2,3,1]>(k2);"
    "v0 = MatMul(x, wv); v1 = Add(v0, bv); v2 = Reshape(v1, split); "
    "v = Transpose<perm=[0,2,1,3]>(v2);"
    "l = MatMul(q, k); s = Softmax<axis=-1>(l); o = MatMul(s, v); "
    "o1 = Transpose<perm=[0,2,1,3]>(o); o2 = Reshape(o1, join); y = MatMul(o2, wo)"
)
PLAIN = (
    HEADS
    + (
        "q0 = MatMul(x, wq); q1 = Add(q0, bq); q2 = Reshape(q1, split); "
        "q3 = Transpose<perm=[0,2,1,3]>(q2); q = Mul(q3, scale);"
    )
    + REST
)
WITHOUT_BIAS = (
    HEADS
    + (
        "q0 = MatMul(x, wq); q2 = Reshape(q0, split); q3 = Transpose<perm=[0,2,1,3]>(q2); "
        "q = Mul(q3, scale);"
    )
    + REST
)
BENT = (
    HEADS
    + (
        "q0 = MatMul(x, wq); q1 = Add(q0, bq); q2 = Reshape(q1, split); "
        "q3 = Transpose<perm=[0,2,1,3]>(q2); q = Tanh(q3);"
    )
    + REST
)
FUSED = (
    "float[n,7,10] x | float[10,72] w, float[72] b, float[24,10] wo, int64[5] split = {0, 0, "
    "3, 3, 8}, int64[3] join = {0, 0, -1}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2} |"
    "a0 = MatMul(x, w); a1 = Add(a0, b); a2 = Reshape(a1, split); "
    "a = Transpose<perm=[2,0,3,1,4]>(a2); q = Gather<axis=0>(a, i0); "
    "k0 = Gather<axis=0>(a, i1); v = Gather<axis=0>(a, i2);"
    "k = Transpose<perm=[0,1,3,2]>(k0); l = MatMul(q, k); s = Softmax<axis=-1>(l); "
    "o = MatMul(s, v); o1 = Transpose<perm=[0,2,1,3]>(o); o2 = Reshape(o1, join); "
    "y = MatMul(o2, wo)"
)

COMPUTED_WEIGHT = (
    "float[n,7,10] x | float[10,24] wq, float[24] bq, float[size] wk, float[9,6] wo, "
    "float s = {0.02}, int8 z = {0} | q0 = MatMul(x, wq); q = Add(q0, bq);"
    "w8 = QuantizeLinear(wk, s, z); k = DequantizeLinear(w8, s, z);"
    "l = MatMul(q, k); y = MatMul(l, wo)"
)


def logits_error(repaired: Repaired) -> float:
    """Return the squared error of the logits of the kept heads."""
    (original,), (after,) = (
        repaired.values(repaired.original, "l"),
        repaired.values(repaired.after, "l"),
    )
    return float(np.square(np.take(original, repaired.kept_of("l", 1), 1) - after).sum())


@pytest.fixture
def unmixed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Repaired]:
    """Return a repair without the joint refit of queries."""

    def repair_unmixed(text: str, **options: Any) -> Repaired:
        with monkeypatch.context() as patch:
            patch.setattr(least_squares, "refit_query", lambda *arguments: None)
            return Repaired.of(text, **options)

    return repair_unmixed


@pytest.mark.parametrize("d", [1, 3, 5])
def test_the_mixture_solves_least_squares(d: int) -> None:
    """On the explicit matrix of all pairs of positions."""
    r = np.random.default_rng(d)
    q, k, logits = (
        r.standard_normal((6, 9, d)),
        r.standard_normal((6, d, 8)),
        r.standard_normal((6, 9, 8)),
    )
    rows = np.einsum("bni,bjm->bnmij", q, k).reshape(-1, d * d)
    lift = np.sqrt(attention.RIDGE * np.square(rows).sum() / d**2)
    expected = np.linalg.lstsq(
        np.vstack([rows, lift * np.eye(d * d)]),
        np.concatenate([logits.ravel(), lift * np.eye(d).ravel()]),
        rcond=None,
    )[0]
    np.testing.assert_allclose(
        best_mixture(q, k, logits), expected.reshape(d, d), atol=SINGLE * np.abs(expected).max()
    )


@pytest.mark.parametrize("text", [PLAIN, FUSED], ids=["plain", "fused"])
def test_queries_are_multiplied_by_the_best_mixture(
    text: str, unmixed: Callable[..., Repaired]
) -> None:
    """Every kept head's query is the unmixed one times M; keys do not change."""
    plain, repaired = unmixed(text), Repaired.of(text)
    (q,), (k,), (original,) = (
        plain.values(plain.after, "q"),
        plain.values(plain.after, "k"),
        plain.values(plain.original, "l"),
    )
    original = np.take(original, repaired.kept_of("l", 1), 1)
    (mixed,), (key,) = repaired.values(repaired.after, "q"), repaired.values(repaired.after, "k")
    np.testing.assert_allclose(key, k, atol=SINGLE)
    for h in range(q.shape[1]):
        np.testing.assert_allclose(
            mixed[:, h],
            q[:, h] @ best_mixture(q[:, h], k[:, h], original[:, h]),
            atol=SINGLE * np.abs(mixed).max(),
        )
    assert logits_error(repaired) < 0.9 * logits_error(plain)


def test_the_mixture_is_merged_into_the_weights() -> None:
    repaired = Repaired.of(PLAIN)
    assert [n.op_type for n in repaired.after.proto.graph.node] == [
        n.op_type for n in repaired.before.proto.graph.node
    ]
    assert not np.array_equal(
        initializer(repaired.after, node_of(repaired.after, "q0").input[1]),
        initializer(repaired.before, "wq"),
    )


@pytest.mark.parametrize(
    "text",
    [WITHOUT_BIAS, *(BENT.replace("Tanh", op) for op in NONLINEAR)],
    ids=["without bias", *NONLINEAR],
)
def test_a_query_that_is_no_rearrangement_is_not_mixed(
    text: str, unmixed: Callable[..., Repaired]
) -> None:
    plain, repaired = unmixed(text), Repaired.of(text)
    for name in plain.after.weights:
        np.testing.assert_array_equal(
            initializer(repaired.after, name), initializer(plain.after, name)
        )


@pytest.mark.parametrize("size", ["24,9", "1,24,9"])
def test_an_operand_without_samples_is_no_key(size: str, unmixed: Callable[..., Repaired]) -> None:
    text = COMPUTED_WEIGHT.replace("size", size)
    plain, repaired = unmixed(text), Repaired.of(text)
    np.testing.assert_array_equal(initializer(repaired.after, "wq"), initializer(plain.after, "wq"))


def test_a_plan_that_keeps_all_changes_no_output() -> None:
    repaired = Repaired.of(PLAIN, share=1.0)
    np.testing.assert_allclose(
        *(repaired.values(m, "y")[0] for m in (repaired.original, repaired.after)), atol=1e-3
    )
