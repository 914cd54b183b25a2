"""New values for the weights that are left, so that outputs change least: a least-squares problem a row, layer after layer.

Each layer reads what the already sparse layers before it give and is to give what the dense network gives there. With X the columns that a row reads
in the sparse network (and a one, where there is a bias), y what it gives in the dense one and w0 its dense values, the error
|w X - y|^2 / n + ridge |w - w0|^2 is least at w_S = (G_SS + ridge I)^-1 (y X' / n + ridge w0)_S, G = X X' / n, S = what is left.
The ridge is unknowns over positions times G's mean diagonal, at least 1e-3 of it (METHODS.md section 1, step 6): late layers see few positions a
sample, and those are much alike; with a small ridge they would be fitted exactly and others badly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from onnxprune.ir.io import Model
from onnxprune.ir.weights import Array, Weight
from onnxprune.sparsify.inputs import MOST_COLUMNS, places
from onnxprune.sparsify.layout import Target
from onnxprune.statistics.im2col import Moments, columns
from onnxprune.statistics.segmented_run import SegmentedRun

RIDGE = 1e-3
LEAST_RIDGE = 1e-12  # inputs that are all zero leave their weights as they are


def refit_all(
    model: Model,
    found: Sequence[Target],
    kept: Mapping[str, np.ndarray],
    batches: list[dict[str, np.ndarray]],
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Model, tuple[str, ...]]:
    """(the sparse model with refitted weights, tensors that have too many inputs for it).

    Parameters
    ----------
    kept
        tensor -> True where a weight stays, (groups, outputs, columns). Weights that go are zero in the result, refitted or not.
    batches
        Calibration feeds; kept in memory with the activations of one place of both networks.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, Weight] = dict(model.weights)
    dense, sparse, skipped = (
        SegmentedRun(model, batches, threads=threads),
        SegmentedRun(model, batches, threads=threads),
        [],
    )
    for i, target in enumerate(found):
        node, (rows, bias) = target.nodes[0], _double(model, target)
        mask, moments = kept[target.tensor], None
        if rows.shape[2] > MOST_COLUMNS:
            skipped.append(target.tensor)
        elif not mask.all() or i:
            for run in (dense, sparse):
                run.advance(run.place(node.output[0]), keep=(node.input[0],))
            read = dense.values(node.input[0]), sparse.values(node.input[0])
            moments = _moments(
                target, node, model.weights[target.tensor].shape, rows, bias, *read, rng
            )
        weights |= resolved(model, target, mask, moments)
        sparse.model = replace(model, weights=weights)
        progress((i + 1) / len(found))
    return replace(model, weights=weights), tuple(skipped)


def _double(model: Model, target: Target) -> tuple[np.ndarray, np.ndarray | None]:
    """(rows, bias) in double precision: (groups, outputs, columns), and (groups, outputs) or None where there is none."""
    name = target.bias(model)
    rows = target.rows(model.weights[target.tensor].array()).astype(np.float64)
    return rows, model.weights[name].array().reshape(target.groups, -1).astype(
        np.float64
    ) if name else None


def resolved(
    model: Model, target: Target, kept: np.ndarray, moments: Sequence[Moments] | None
) -> dict[str, Weight]:
    """A weight made sparse, and its bias, by name: refitted to moments, a group each; without these the weight alone, with zeros."""
    (rows, bias), name, old = (
        _double(model, target),
        target.bias(model),
        model.weights[target.tensor],
    )
    values = np.where(kept, rows, 0)
    out: dict[str, Weight] = {}
    if moments:
        parts = [
            refit(rows[g], kept[g], m, bias[g] if bias is not None else None)
            for g, m in enumerate(moments)
        ]
        values = np.stack([p[0] for p in parts])
        if name:
            shift = np.concatenate([p[1] for p in parts if p[1] is not None])
            out[name] = Array(
                model.weights[name].dtype, shift.astype(model.weights[name].array().dtype)
            )
    return {
        target.tensor: Array(old.dtype, target.weight(values, old.shape).astype(old.array().dtype)),
        **out,
    }


def refit(
    rows: np.ndarray, kept: np.ndarray, moments: Moments, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(rows, bias) refitted.

    Parameters
    ----------
    rows
        Dense weights of one group, (outputs, columns).
    kept
        True where a weight stays, same shape.
    moments
        Of the columns and a last column of ones, and of what the outputs are to be.
    bias
        (outputs,), None where there is none: then the last column is left out.
    """
    h, ridge = damped(moments, rows.shape[1], bias is not None)
    dense = rows if bias is None else np.column_stack([rows, bias])
    left = kept if bias is None else np.column_stack([kept, np.ones(len(kept), bool)])
    wanted = (
        dense @ h
        if moments.yx is None
        else moments.yx[:, : len(h)] / max(moments.count, 1) + ridge * dense
    )
    out = _constrained(h, wanted, left)
    return (out, None) if bias is None else (out[:, :-1], out[:, -1])


def damped(moments: Moments, columns: int, biased: bool) -> tuple[np.ndarray, np.ndarray]:
    """(mean products of the columns, and of a last one of ones where there is a bias, plus the ridge; the ridge, an element a column)."""
    count, size = max(moments.count, 1), columns + biased
    gram = moments.xx[:size, :size] / count
    level = float(np.diag(gram)[:columns].mean())
    ridge = np.full(size, max(max(RIDGE, size / count) * level, LEAST_RIDGE))
    ridge[columns:] = max(RIDGE * level, LEAST_RIDGE)  # a bias is known well from few positions
    return gram + np.diag(ridge), ridge


def _constrained(h: np.ndarray, wanted: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Row i of the result solves h w = wanted[i] on left[i] and is zero elsewhere.

    Where less goes than stays, the full solution u is corrected instead: w = u - P_:R (P_RR)^-1 u_R, P = h^-1, R = what goes.
    """
    out = np.zeros(wanted.shape)
    inverse = np.linalg.inv(h)
    free = wanted @ inverse
    for i, mask in enumerate(left):
        gone = np.flatnonzero(~mask)
        if 2 * len(gone) < len(mask):
            out[i] = free[i] - inverse[:, gone] @ _solved(
                inverse[np.ix_(gone, gone)], free[i, gone]
            )
            out[i, gone] = 0
        else:
            out[i, mask] = _solved(h[np.ix_(mask, mask)], wanted[i, mask])
    return out


def _solved(h: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """h^-1 wanted, h symmetric; half the work of a plain solver where h is positive definite by its numbers too."""
    from scipy.linalg import lapack

    if not len(h):
        return wanted
    _, found, info = lapack.dposv(h, wanted, lower=1)
    return np.asarray(found if info == 0 else np.linalg.solve(h, wanted))


def _moments(
    target: Target,
    node: NodeProto,
    shape: Sequence[int],
    rows: np.ndarray,
    bias: np.ndarray | None,
    dense: list[np.ndarray],
    sparse: list[np.ndarray],
    rng: np.random.Generator,
) -> list[Moments]:
    """A group each: of what the sparse network's layer reads, and of what the dense one's gives."""
    groups, outputs, size = rows.shape
    xx, yx, count = np.zeros((groups, size + 1, size + 1)), np.zeros((groups, outputs, size + 1)), 0
    weights = rows.astype(np.float32)
    for there, here in zip(dense, sparse, strict=False):
        how, at = places(node, shape, here.shape, rng)
        read, meant = (columns(x, how, at).reshape(groups, size, -1) for x in (here, there))
        full = np.concatenate([read, np.ones((groups, 1, read.shape[2]), np.float32)], 1)
        y = weights @ meant + (bias[:, :, None].astype(np.float32) if bias is not None else 0)
        xx += (
            (full[0] @ full[0].T)[None] if groups == 1 else full @ full.swapaxes(1, 2)
        )  # numpy's symmetric product is of two axes
        yx += y @ full.swapaxes(1, 2)
        count += read.shape[2]
    return [Moments(x, x[-1], y, count=count) for x, y in zip(xx, yx, strict=False)]
