"""Least-squares refit of sparse weights, row by row and layer by layer.

The remaining weights of a layer are fitted so that the layer, on the activations of the already
sparse layers before it, outputs what it outputs in the dense network. With X the columns that a
row reads in the sparse network (and a one if there is a bias), y its output in the dense network,
w0 its dense values, and S the kept weights, the error

    |w X - y|^2 / n + ridge |w - w0|^2

has its minimum at w_S = (G_SS + ridge I)^-1 (y X' / n + ridge w0)_S with G = X X' / n.

The ridge is (unknowns / positions) times the mean diagonal of G, at least 1e-3 of it. Late layers
see few positions per sample, and those resemble each other: with a small ridge they would be
fitted exactly and other inputs badly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.ir.io import Model
from onnxprune.ir.weights import ArrayWeight, Weight
from onnxprune.sparsify.inputs import MAX_COLUMNS, gram, sample_positions
from onnxprune.sparsify.layout import LinearWeight
from onnxprune.statistics.im2col import Moments, columns
from onnxprune.statistics.segmented_run import SegmentedRun

RIDGE = 1e-3
MIN_RIDGE = 1e-12  # weights of inputs that are all zero keep their values


def refit_all(
    model: Model,
    targets: Sequence[LinearWeight],
    kept: Mapping[str, np.ndarray],
    batches: list[dict[str, np.ndarray]],
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Model, tuple[str, ...]]:
    """Return the sparse model with refitted weights.

    Parameters
    ----------
    model
        Dense model.
    targets
        Tensors to refit, in graph order.
    kept
        tensor -> True = kept, (groups, outputs, columns); removed weights become zero in any case.
    batches
        Calibration feeds; held in memory with the activations of one layer of both networks.

    Returns
    -------
    model : Model
        Sparse model.
    skipped : tuple of str
        Tensors with too many columns for a refit.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, Weight] = dict(model.weights)
    dense = SegmentedRun(model, batches, threads=threads)
    sparse = SegmentedRun(model, batches, threads=threads)
    skipped = []
    for i, target in enumerate(targets):
        mask, moments = kept[target.tensor], None
        if mask.shape[2] > MAX_COLUMNS:
            skipped.append(target.tensor)
        # the first tensor reads the same in both networks: intact, it needs no refit
        elif i or not mask.all():
            node = target.nodes[0]
            for run in (dense, sparse):
                run.advance(run.place(node.output[0]), keep=(node.input[0],))
            x_dense, x_sparse = dense.values(node.input[0]), sparse.values(node.input[0])
            moments = _measure_moments(model, target, x_dense, x_sparse, rng)
        # later layers read the activations of the refitted ones
        weights |= sparse_weights(model, target, mask, moments)
        sparse.model = replace(model, weights=weights)
        progress((i + 1) / len(targets))
    return replace(model, weights=weights), tuple(skipped)


def sparse_weights(
    model: Model, target: LinearWeight, kept: np.ndarray, moments: Sequence[Moments] | None
) -> dict[str, Weight]:
    """Return a sparse weight by name, and its bias if both were refitted.

    Parameters
    ----------
    kept
        True = kept, (groups, outputs, columns).
    moments
        Per group; None or empty = no refit, removed weights become zero.
    """
    rows, bias = _read_rows(model, target)
    old = model.weights[target.tensor]
    values = np.where(kept, rows, 0)
    result: dict[str, Weight] = {}
    if moments:
        parts = [
            refit(rows[g], kept[g], m, bias[g] if bias is not None else None)
            for g, m in enumerate(moments)
        ]
        values = np.stack([part for part, _ in parts])
        name = target.private_bias(model)
        if name:
            shift = np.concatenate([s for _, s in parts if s is not None]) * target.alpha
            old_bias = model.weights[name]
            result[name] = ArrayWeight(old_bias.dtype, shift.astype(old_bias.array().dtype))
    weight = target.from_rows(values, old.shape).astype(old.array().dtype)
    return {target.tensor: ArrayWeight(old.dtype, weight), **result}


def refit(
    rows: np.ndarray, kept: np.ndarray, moments: Moments, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the refitted rows and bias of one group.

    Parameters
    ----------
    rows
        Dense weights, (outputs, columns).
    kept
        True = kept, same shape.
    moments
        Of the columns and a last column of ones, and of the expected outputs; without the latter
        the dense rows on the same inputs are the expected outputs.
    bias
        (outputs,); None = no bias, then the last column is ignored.
    """
    h, ridge = damped_gram(moments, rows.shape[1], bias is not None)
    dense, free = rows, kept
    if bias is not None:
        dense = np.column_stack([rows, bias])
        free = np.column_stack([kept, np.ones(len(kept), bool)])
    if moments.yx is None:
        right = dense @ h
    else:
        right = moments.yx[:, : len(h)] / max(moments.count, 1) + ridge * dense
    result = _solve_rows(h, right, free)
    return (result, None) if bias is None else (result[:, :-1], result[:, -1])


def damped_gram(moments: Moments, width: int, biased: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean products of the columns plus the ridge, and the ridge per column.

    Parameters
    ----------
    moments
        Of the columns and a last column of ones.
    width
        Number of columns without that last one.
    biased
        Include the last column.
    """
    count, size = max(moments.count, 1), width + biased
    mean = moments.xx[:size, :size] / count
    level = float(np.diag(mean)[:width].mean())
    ridge = np.full(size, max(max(RIDGE, size / count) * level, MIN_RIDGE))
    # few positions suffice for a bias
    ridge[width:] = max(RIDGE * level, MIN_RIDGE)
    return mean + np.diag(ridge), ridge


def _solve_rows(h: np.ndarray, right: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Return rows w with h w = right[i] on free[i] and zeros elsewhere.

    With fewer removed than free entries, the full solution u is corrected instead:
    w = u - P_:R (P_RR)^-1 u_R, with P = h^-1 and R the removed entries.
    """
    result = np.zeros(right.shape)
    # one inverse serves all rows, whose masks differ
    inverse = np.linalg.inv(h)
    full = right @ inverse
    for i, mask in enumerate(free):
        removed = np.flatnonzero(~mask)
        if 2 * len(removed) < len(mask):
            multipliers = _solve(inverse[np.ix_(removed, removed)], full[i, removed])
            result[i] = full[i] - inverse[:, removed] @ multipliers
            result[i, removed] = 0
        else:
            result[i, mask] = _solve(h[np.ix_(mask, mask)], right[i, mask])
    return result


def _solve(h: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return h^-1 right for a symmetric h."""
    from scipy.linalg import lapack

    if not len(h):
        return right
    # Cholesky is half the work of a general solver; it fails if h is not definite numerically
    _, solution, info = lapack.dposv(h, right, lower=1)
    return np.asarray(solution if info == 0 else np.linalg.solve(h, right))


def _read_rows(model: Model, target: LinearWeight) -> tuple[np.ndarray, np.ndarray | None]:
    """Return rows (groups, outputs, columns) and bias (groups, outputs) in double precision.

    The bias is divided by the alpha of a Gemm, so that rows and bias have one scale.
    """
    rows = target.to_rows(model.weights[target.tensor].array()).astype(np.float64)
    name = target.private_bias(model)
    if name is None:
        return rows, None
    bias = model.weights[name].array().reshape(target.groups, -1)
    return rows, bias.astype(np.float64) / target.alpha


def _measure_moments(
    model: Model,
    target: LinearWeight,
    x_dense: Sequence[np.ndarray],
    x_sparse: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> list[Moments]:
    """Return the moments per group: inputs in the sparse network, outputs in the dense one."""
    rows, bias = _read_rows(model, target)
    groups, outputs, size = rows.shape
    shape = model.weights[target.tensor].shape
    xx, yx = np.zeros((groups, size + 1, size + 1)), np.zeros((groups, outputs, size + 1))
    count = 0
    # activations are float32; sums over positions are accumulated in float64
    weights = rows.astype(np.float32)
    shift = 0 if bias is None else bias[:, :, None].astype(np.float32)
    for dense, sparse in zip(x_dense, x_sparse, strict=True):
        how, at = sample_positions(target.nodes[0], shape, sparse.shape, rng)
        read = columns(sparse, how, at).reshape(groups, size, -1)
        y = weights @ columns(dense, how, at).reshape(groups, size, -1) + shift
        ones = np.ones((groups, 1, read.shape[2]), np.float32)
        full = np.concatenate([read, ones], 1)
        xx += gram(full)
        yx += y @ full.swapaxes(1, 2)
        count += read.shape[2]
    # the last column is one, so that its products are the sums
    return [Moments(x, x[-1], y, count=count) for x, y in zip(xx, yx, strict=True)]
