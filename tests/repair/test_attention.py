"""Query and key of attention: the mixture against explicit least squares, where it goes, and where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
from repair_reference import Repaired, initializer, node_of

from onnxprune.repair import attention, least_squares
from onnxprune.repair.attention import best_mixture

SINGLE = 1e-4  # of the largest value
HEADS = (
    "float[n,7,10] x | float[10,24] wq, float[24] bq, float[10,24] wk, float[24] bk, float[10,24] wv, float[24] bv, float[24,10] wo,"
    "int64[4] split = {0, 0, 3, 8}, int64[3] join = {0, 0, -1}, float scale = {0.35} |"
)
REST = (
    "k0 = MatMul(x, wk); k1 = Add(k0, bk); k2 = Reshape(k1, split); k = Transpose<perm=[0,2,3,1]>(k2);"
    "v0 = MatMul(x, wv); v1 = Add(v0, bv); v2 = Reshape(v1, split); v = Transpose<perm=[0,2,1,3]>(v2);"
    "l = MatMul(q, k); s = Softmax<axis=-1>(l); o = MatMul(s, v); o1 = Transpose<perm=[0,2,1,3]>(o); o2 = Reshape(o1, join); y = MatMul(o2, wo)"
)
PLAIN = (
    HEADS
    + "q0 = MatMul(x, wq); q1 = Add(q0, bq); q2 = Reshape(q1, split); q3 = Transpose<perm=[0,2,1,3]>(q2); q = Mul(q3, scale);"
    + REST
)
WITHOUT_BIAS = (
    HEADS
    + "q0 = MatMul(x, wq); q2 = Reshape(q0, split); q3 = Transpose<perm=[0,2,1,3]>(q2); q = Mul(q3, scale);"
    + REST
)
BENT = (
    HEADS
    + "q0 = MatMul(x, wq); q1 = Add(q0, bq); q2 = Reshape(q1, split); q3 = Transpose<perm=[0,2,1,3]>(q2); q = Tanh(q3);"
    + REST
)
FUSED = (
    "float[n,7,10] x | float[10,72] w, float[72] b, float[24,10] wo, int64[5] split = {0, 0, 3, 3, 8}, int64[3] join = {0, 0, -1}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2} |"
    "a0 = MatMul(x, w); a1 = Add(a0, b); a2 = Reshape(a1, split); a = Transpose<perm=[2,0,3,1,4]>(a2); q = Gather<axis=0>(a, i0); k0 = Gather<axis=0>(a, i1); v = Gather<axis=0>(a, i2);"
    "k = Transpose<perm=[0,1,3,2]>(k0); l = MatMul(q, k); s = Softmax<axis=-1>(l); o = MatMul(s, v); o1 = Transpose<perm=[0,2,1,3]>(o); o2 = Reshape(o1, join); y = MatMul(o2, wo)"
)


def logits_error(found: Repaired) -> float:
    """Squared error of the logits of the heads that are left."""
    (original,), (after,) = found.values(found.original, "l"), found.values(found.after, "l")
    return float(np.square(np.take(original, found.kept_of("l", 1), 1) - after).sum())


@pytest.fixture
def unmixed(monkeypatch: pytest.MonkeyPatch) -> object:
    """The repair with the query left as its own fit has it."""

    def repaired(text: str, **options: float) -> Repaired:
        with monkeypatch.context() as patch:
            patch.setattr(least_squares, "refit_query", lambda *arguments: None)
            return Repaired.of(text, **options)  # type: ignore[arg-type]

    return repaired


@pytest.mark.parametrize("d", [1, 3, 5])
def test_the_mixture_is_that_of_least_squares(d: int) -> None:
    """On the explicit matrix of all pairs of positions."""
    r = np.random.default_rng(d)
    q, k, logits = (
        r.standard_normal((6, 9, d)),
        r.standard_normal((6, d, 8)),
        r.standard_normal((6, 9, 8)),
    )
    rows = np.einsum("bni,bjm->bnmij", q, k).reshape(-1, d * d)
    lift = np.sqrt(attention.RIDGE * np.square(rows).sum() / d**2)
    wanted = np.linalg.lstsq(
        np.vstack([rows, lift * np.eye(d * d)]),
        np.concatenate([logits.ravel(), lift * np.eye(d).ravel()]),
        rcond=None,
    )[0]
    np.testing.assert_allclose(
        best_mixture(q, k, logits), wanted.reshape(d, d), atol=SINGLE * np.abs(wanted).max()
    )


@pytest.mark.parametrize("text", [PLAIN, FUSED], ids=["plain", "fused"])
def test_logits_are_those_of_the_best_mixture(text: str, unmixed: object) -> None:
    """The query of every head left is the unmixed one times M; nothing else before the logits moves."""
    plain, found = unmixed(text), Repaired.of(text)  # type: ignore[operator]
    (q,), (k,), (original,) = (
        plain.values(plain.after, "q"),
        plain.values(plain.after, "k"),
        plain.values(plain.original, "l"),
    )
    original = np.take(original, found.kept_of("l", 1), 1)
    (mixed,), (key,) = found.values(found.after, "q"), found.values(found.after, "k")
    np.testing.assert_allclose(key, k, atol=SINGLE)
    for h in range(q.shape[1]):
        np.testing.assert_allclose(
            mixed[:, h],
            q[:, h] @ best_mixture(q[:, h], k[:, h], original[:, h]),
            atol=SINGLE * np.abs(mixed).max(),
        )
    assert logits_error(found) < 0.9 * logits_error(plain)


def test_the_weights_take_it_and_no_node_is_added() -> None:
    found = Repaired.of(PLAIN)
    assert [n.op_type for n in found.after.proto.graph.node] == [
        n.op_type for n in found.before.proto.graph.node
    ]
    assert not np.array_equal(
        initializer(found.after, node_of(found.after, "q0").input[1]),
        initializer(found.before, "wq"),
    )


@pytest.mark.parametrize("text", [WITHOUT_BIAS, BENT], ids=["without bias", "bent"])
def test_a_query_that_is_not_moved_channels_stays(text: str, unmixed: object) -> None:
    plain, found = unmixed(text), Repaired.of(text)  # type: ignore[operator]
    for name in plain.after.weights:
        np.testing.assert_array_equal(
            initializer(found.after, name), initializer(plain.after, name)
        )


def test_nothing_cut_changes_nothing() -> None:
    found = Repaired.of(PLAIN, share=1.0)
    np.testing.assert_allclose(
        *(found.values(m, "y")[0] for m in (found.original, found.after)), atol=1e-3
    )
