"""Query and key of attention, refitted together: the logits of the whole network, from the dimensions that are left.

Refitting query and key each to its own kept part loses what the removed dimensions gave to their product. Behind their own fits every
head's query is therefore multiplied by the matrix M that minimizes |Q M K^T - logits|^2 over all inputs, and M goes into the weights that
make the query. A closed form: sum over inputs of (Q^T Q) M (K^T K) = sum of Q^T logits K (for the idea: CORP, GRAIL 2602.23795).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import from_matrix, to_matrix
from onnxprune.ir.model import EditableModel, ModelView
from onnxprune.ir.runtime import Session
from onnxprune.repair.fits import Fit, kept_values, set_values
from onnxprune.statistics.moments import products
from onnxprune.statistics.segmented_run import SegmentedRun

RIDGE = 1e-3  # of the mean diagonal of the normal equations, towards the query as it is
MOST_SAMPLES = 128  # inputs; each gives an equation for every pair of positions
ITERATIONS, ACCURACY = 200, 1e-7  # of conjugate gradients; preconditioned, they end after some tens
EXACT = 1e-3  # a probe's channel numbers are integers within this


def lossy_products(
    analysis: Analysis, removed: np.ndarray, fits: Sequence[Fit]
) -> list[tuple[str, list[Fit]]]:
    """Outputs of products of two activations that sum over an axis of which something goes, in graph order, and what may make their query."""
    found = []
    for node, ids in products(analysis):
        if not analysis.keep(ids, removed).all():
            summed = analysis.axes.table(ids)
            makers = [
                f
                for f in fits
                if f.linear.out_ids is not None
                and np.isin(
                    analysis.axes.table(f.linear.out_ids), summed[summed < analysis.axes.causes]
                ).any()
            ]
            found.append((analysis.record.nodes[node].output[0], makers))
    return found


def refit_query(
    analysis: Analysis,
    removed: np.ndarray,
    model: EditableModel,
    makers: Sequence[Fit],
    out: str,
    cut: SegmentedRun,
    whole: SegmentedRun,
) -> None:
    """Multiply the query of one product by the best matrix a head. `model` and the state of `cut` are changed.

    Nothing is done where the query does not come from one linear node with a bias by moving channels and scaling all alike, or is
    read elsewhere too.
    """
    place = cut.place(out)
    if place < 0:
        return
    node = cut.nodes[place]
    query, key = node.input[:2]
    cut.advance(place)
    whole.advance(whole.place(out) + 1, keep=[out])
    if (
        not (cut.has(query) and cut.has(key) and whole.has(out))
        or sum(list(n.input).count(query) for n in cut.nodes) != 1
    ):
        return
    found = (
        (fit, where) for fit in makers if (where := _channels(model, fit, query, cut)) is not None
    )
    fit, where = next(found, (None, None))
    if fit is None or where is None:
        return
    q, k, logits = (
        _by_head(values)
        for values in (
            cut.values(query),
            cut.values(key),
            kept_values(analysis, removed, out, whole.values(out)),
        )
    )
    if logits.shape != (*q.shape[:3], k.shape[3]):
        return
    mixed = [best_mixture(q[:, h], k[:, h], logits[:, h]) for h in range(q.shape[1])]
    if not np.isfinite(mixed).all():
        return
    _write(model, fit, where, mixed)
    for state in cut.state:
        values = state[query]
        heads = values.reshape(-1, len(mixed), *values.shape[-2:])
        state[query] = np.einsum("bhnd,hde->bhne", heads, np.array(mixed, values.dtype)).reshape(
            values.shape
        )


def best_mixture(q: np.ndarray, k: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(d, d) M of least |q M k - logits|^2 + ridge |M - 1|^2; q: (samples, n, d), k: (samples, d, m), logits: (samples, n, m)."""
    from scipy.sparse.linalg import LinearOperator, cg

    d = q.shape[-1]
    left, right = q.swapaxes(1, 2) @ q, k @ k.swapaxes(1, 2)
    lift = max(RIDGE * float(np.einsum("bii,bjj->", left, right)) / d**2, 1e-12)
    (a, u), (b, v) = np.linalg.eigh(left.sum(0)), np.linalg.eigh(right.mean(0))
    values = np.maximum(np.outer(a, b), 0.0) + lift

    def normal(m: np.ndarray) -> np.ndarray:
        return np.asarray(
            ((left @ m.reshape(d, d) @ right).sum(0) + lift * m.reshape(d, d)).ravel()
        )

    def rough(m: np.ndarray) -> np.ndarray:
        return np.asarray((u @ (u.T @ m.reshape(d, d) @ v / values) @ v.T).ravel())

    wanted = (q.swapaxes(1, 2) @ logits @ k.swapaxes(1, 2)).sum(0) + lift * np.eye(d)
    size = (d * d, d * d)
    found, _ = cg(
        LinearOperator(size, normal),
        wanted.ravel(),
        np.eye(d).ravel(),
        rtol=ACCURACY,
        maxiter=ITERATIONS,
        M=LinearOperator(size, rough),
    )
    return np.asarray(found.reshape(d, d))


def _by_head(values: Sequence[np.ndarray]) -> np.ndarray:
    """(samples, heads, rows, columns) float64 of the first samples; heads: all axes between the first and the last two."""
    parts = np.concatenate([np.asarray(v) for v in values])[:MOST_SAMPLES].astype(np.float64)
    return parts.reshape(len(parts), -1, *parts.shape[-2:])


def _channels(model: ModelView, fit: Fit, tensor: str, cut: SegmentedRun) -> np.ndarray | None:
    """(heads, d) output channels of a linear node that each column of a tensor holds, by running the network with channel numbers in its bias.

    None where the tensor does not hold them, or other things too: numbers are then no integers, or not those of every input and position.
    """
    if (
        not fit.bias
        or np.ndim(fit.scale)
        or fit.linear.groups != 1
        or cut.place(fit.linear.out) > cut.place(tensor)
    ):
        return None
    size = model.weights[fit.bias].shape[0]
    found = []
    for numbers in (np.ones(size), np.arange(1, size + 1)):
        probe = model.edit()
        set_values(probe, fit.weight, np.zeros(model.weights[fit.weight].shape))
        set_values(probe, fit.bias, numbers)
        found.append(
            np.asarray(
                Session(probe, [tensor], threads=cut.threads).run(cut.feeds)[tensor], np.float64
            )
        )
    one, ramp = (v.reshape(len(v), -1, *v.shape[-2:]) for v in found)
    if not one.all():
        return None
    channels = ramp / one - 1
    first = channels[:1, :, :1]
    where = np.rint(first).astype(np.int64).reshape(-1, channels.shape[-1])
    same = (
        np.abs(channels - first).max() <= EXACT
        and np.abs(first.reshape(where.shape) - where).max() <= EXACT
        and np.ptp(one) <= EXACT * abs(float(one.flat[0]))
    )
    return (
        where
        if same and len(np.unique(where)) == where.size and where.min() >= 0 and where.max() < size
        else None
    )


def _write(model: EditableModel, fit: Fit, where: np.ndarray, mixed: Sequence[np.ndarray]) -> None:
    """The matrices into the weight and the bias of the node that makes the query."""
    node = next(n for n in model.proto.graph.node if fit.linear.out in n.output)
    weight = model.weights[fit.weight]
    matrix = to_matrix(fit.linear, node, weight.array()).astype(np.float64)
    bias = model.weights[fit.bias].array().astype(np.float64)
    for channels, m in zip(where, mixed, strict=False):
        matrix[0, channels] = np.einsum("oct,oe->ect", matrix[0, channels], m)
        bias[channels] = bias[channels] @ m
    set_values(model, fit.weight, from_matrix(fit.linear, node, matrix, weight.shape))
    set_values(model, fit.bias, bias)
