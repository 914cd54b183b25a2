"""Joint refit of query and key of attention: reproduce the original's logits.

Refitting query and key separately, each to its own kept part, loses what the removed dimensions
contributed to their product. After their own fits, every head's query Q is therefore multiplied by
the matrix M that minimizes |Q M K^T - logits|^2 over all inputs, and M is merged into the weights
that produce the query. M solves a linear system:

    sum over inputs of (Q^T Q) M (K^T K) = sum over inputs of Q^T logits K

(The idea is that of CORP and of GRAIL, arXiv 2602.23795.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.ir.linear import WeightLayout
from onnxprune.ir.model import EditableModel, ModelView
from onnxprune.ir.runtime import Session
from onnxprune.repair.fits import Fit, set_values
from onnxprune.statistics.moments import products
from onnxprune.statistics.segmented_run import SegmentedRun

# Relative to the mean diagonal of the normal equations; the ridge pulls M to the identity.
RIDGE = 1e-3
MAX_SAMPLES = 128  # each gives an equation per pair of positions, more than enough
# Of conjugate gradients; preconditioned, they converge within some tens of iterations.
MAX_ITERATIONS, ACCURACY = 200, 1e-7
INTEGER_TOLERANCE = 1e-3  # traced channel numbers are integers within this
_TINY = 1e-12


def lossy_products(
    analysis: Analysis, removed: np.ndarray, fits: Sequence[Fit]
) -> list[tuple[str, list[Fit]]]:
    """Return products of two activations whose summed axis loses positions, in graph order.

    Parameters
    ----------
    removed
        (causes + 1,) bool, as returned by `Analysis.removed`.

    Returns
    -------
    list of (output of the product, fits that may produce its query)
    """
    result = []
    for node, ids in products(analysis):
        if analysis.keep(ids, removed).all():
            continue
        table = analysis.axes.table(ids)
        summed = table[table < analysis.axes.causes]  # the last number stands for no cause
        producers = [
            fit
            for fit in fits
            if fit.linear.out_ids is not None
            and np.isin(analysis.axes.table(fit.linear.out_ids), summed).any()
        ]
        result.append((analysis.nodes[node].output[0], producers))
    return result


def refit_query(
    analysis: Analysis,
    removed: np.ndarray,
    model: EditableModel,
    producers: Sequence[Fit],
    out: str,
    pruned: SegmentedRun,
    original: SegmentedRun,
) -> None:
    """Multiply the query of one product by the best matrix per head.

    Nothing changes if the query is consumed elsewhere too, or is not the output of one linear node
    with a bias up to moving channels and one common factor.

    Parameters
    ----------
    model
        Pruned model; its query weights and biases are changed.
    producers
        Fits that may produce the query.
    out
        Output of the product.
    pruned, original
        Runs of both networks, not past the product. Both are advanced to it, and the query in the
        state of `pruned` is updated.
    """
    position = pruned.place(out)
    # the pruned network lacks the product
    if position < 0:
        return
    query, key = pruned.nodes[position].input[:2]
    pruned.advance(position)
    original.advance(original.place(out) + 1, keep=[out])
    if not (pruned.has(query) and pruned.has(key) and original.has(out)):
        return
    if sum(list(n.input).count(query) for n in pruned.nodes) != 1:
        return
    traced = _find_producer(model, producers, query, pruned)
    if traced is None:
        return
    fit, channels = traced
    operands = [pruned.values(query), pruned.values(key)]
    operands.append([analysis.keep_values(out, v, removed) for v in original.values(out)])
    # an operand without samples, such as a weight behind QuantizeLinear, is no query or key
    if any(values[0].ndim < 3 for values in operands):
        return
    q, k, logits = map(_arrange_by_head, operands)
    # heads and samples that broadcast have no matrix of their own
    if k.shape[:3] != (*q.shape[:2], q.shape[3]) or logits.shape != (*q.shape[:3], k.shape[3]):
        return
    mixtures = [best_mixture(q[:, h], k[:, h], logits[:, h]) for h in range(q.shape[1])]
    if not np.isfinite(mixtures).all():
        return
    _write_mixtures(model, fit, channels, mixtures)
    # later layers must see the new query
    for state in pruned.state:
        values = state[query]
        heads = values.reshape(-1, len(mixtures), *values.shape[-2:])
        mixed = np.einsum("bhnd,hde->bhne", heads, np.array(mixtures, values.dtype))
        state[query] = mixed.reshape(values.shape)


def best_mixture(q: np.ndarray, k: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the M that minimizes |q M k - logits|^2 + ridge |M - I|^2.

    By conjugate gradients, preconditioned with the Kronecker product of the mean factors, of which
    the eigenvalues are known.

    Parameters
    ----------
    q
        (samples, n, d).
    k
        (samples, d, m).
    logits
        (samples, n, m).

    Returns
    -------
    np.ndarray
        (d, d).
    """
    from scipy.sparse.linalg import LinearOperator, cg

    d = q.shape[-1]
    left, right = q.swapaxes(1, 2) @ q, k @ k.swapaxes(1, 2)
    # solvable even if all activations are zero
    ridge = max(RIDGE * float(np.einsum("bii,bjj->", left, right)) / d**2, _TINY)
    (a, u), (b, v) = np.linalg.eigh(left.sum(0)), np.linalg.eigh(right.mean(0))
    eigenvalues = np.maximum(np.outer(a, b), 0.0) + ridge

    def apply_normal(m: np.ndarray) -> np.ndarray:
        square = m.reshape(d, d)
        return np.asarray(((left @ square @ right).sum(0) + ridge * square).ravel())

    def precondition(m: np.ndarray) -> np.ndarray:
        return np.asarray((u @ (u.T @ m.reshape(d, d) @ v / eigenvalues) @ v.T).ravel())

    target = (q.swapaxes(1, 2) @ logits @ k.swapaxes(1, 2)).sum(0) + ridge * np.eye(d)
    size = (d * d, d * d)
    solution, _ = cg(
        LinearOperator(size, apply_normal),
        target.ravel(),
        np.eye(d).ravel(),
        rtol=ACCURACY,
        maxiter=MAX_ITERATIONS,
        M=LinearOperator(size, precondition),
    )
    return np.asarray(solution.reshape(d, d))


def _arrange_by_head(values: Sequence[np.ndarray]) -> np.ndarray:
    """Return the first samples as (samples, heads, rows, columns) float64.

    Heads are all axes between the first and the last two.
    """
    samples = np.concatenate([np.asarray(v) for v in values])[:MAX_SAMPLES].astype(np.float64)
    return samples.reshape(len(samples), -1, *samples.shape[-2:])


def _find_producer(
    model: ModelView, producers: Sequence[Fit], query: str, pruned: SegmentedRun
) -> tuple[Fit, np.ndarray] | None:
    """Return the fit whose outputs the query consists of, with the channel of each column."""
    for fit in producers:
        channels = _trace_channels(model, fit, query, pruned)
        if channels is not None:
            return fit, channels
    return None


def _trace_channels(
    model: ModelView, fit: Fit, tensor: str, pruned: SegmentedRun
) -> np.ndarray | None:
    """Return the output channel of a linear node that each column of a tensor holds.

    The network runs with a zero weight and with channel numbers as the bias, which reveals any
    combination of reshapes, transposes and slices.

    Returns
    -------
    np.ndarray or None
        (heads, d) int. None if the tensor is not such a rearrangement: numbers are then no
        integers, or differ between inputs and positions.
    """
    # a scale per channel would change the channel numbers
    if not fit.bias or np.ndim(fit.scale) or fit.linear.groups != 1:
        return None
    if pruned.place(fit.linear.out) > pruned.place(tensor):
        return None
    size = model.weights[fit.bias].shape[0]
    # The first probe measures the common factor, the second the channel numbers times it. These are
    # negative, because Relu, Elu and Abs let positive ones pass.
    ones, numbers = (
        _run_with_bias(model, fit, tensor, pruned, bias)
        for bias in (np.ones(size), -np.arange(1, size + 1))
    )
    if not ones.all():
        return None
    channels = -numbers / ones - 1
    first = channels[:1, :, :1]
    result = np.rint(first).astype(np.int64).reshape(-1, channels.shape[-1])
    is_constant = (
        np.abs(channels - first).max() <= INTEGER_TOLERANCE
        and np.abs(first.reshape(result.shape) - result).max() <= INTEGER_TOLERANCE
        and np.ptp(ones) <= INTEGER_TOLERANCE * abs(float(ones.flat[0]))
    )
    is_unique = len(np.unique(result)) == result.size
    if not is_constant or not is_unique or result.min() < 0 or result.max() >= size:
        return None
    return result


def _run_with_bias(
    model: ModelView, fit: Fit, tensor: str, pruned: SegmentedRun, bias: np.ndarray
) -> np.ndarray:
    """Return a tensor as (samples, heads, rows, columns) if a node outputs nothing but a bias."""
    probe = model.edit()
    set_values(probe, fit.weight, np.zeros(model.weights[fit.weight].shape))
    set_values(probe, fit.bias, bias)
    values = Session(probe, [tensor], threads=pruned.threads).run(pruned.feeds)[tensor]
    values = np.asarray(values, np.float64)
    return values.reshape(len(values), -1, *values.shape[-2:])


def _write_mixtures(
    model: EditableModel, fit: Fit, channels: np.ndarray, mixtures: Sequence[np.ndarray]
) -> None:
    """Merge the matrices into the weight and bias of the node that produces the query.

    Parameters
    ----------
    channels
        (heads, d) output channels of each head.
    """
    node = next(n for n in model.proto.graph.node if fit.linear.out in n.output)
    weight, layout = model.weights[fit.weight], WeightLayout.of(node)
    matrix = layout.to_matrix(weight.array()).astype(np.float64)
    bias = model.weights[fit.bias].array().astype(np.float64)
    for own, m in zip(channels, mixtures, strict=True):
        matrix[0, own] = np.einsum("oct,oe->ect", matrix[0, own], m)
        bias[own] = bias[own] @ m
    set_values(model, fit.weight, layout.from_matrix(matrix, weight.shape))
    set_values(model, fit.bias, bias)
