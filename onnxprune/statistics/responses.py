"""Principal directions of the outputs of linear layers, over samples and positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear
from onnxprune.data.dataset import Data
from onnxprune.ir.runtime import Session
from onnxprune.statistics.finite import require_finite
from onnxprune.surgery.factoring import Basis

# Output positions per channel and batch: a wide layer needs more to have a covariance of full rank
OVERSAMPLE = 4


def collect_bases(
    analysis: Analysis,
    layers: Sequence[Linear],
    data: Data,
    *,
    batch_size: int,
    threads: int,
    seed: int,
) -> Mapping[str, Basis]:
    """Return the principal directions of each layer's outputs, by the name of the output.

    Of a MatMul, which has no bias, they are those of the second moments about zero.

    Parameters
    ----------
    seed
        Seed of the choice of positions.

    Notes
    -----
    Cost: one pass over the data.
    """
    if not layers:
        return {}
    session = Session(analysis.model, [layer.out for layer in layers], threads=threads)
    rng = np.random.default_rng(seed)
    sums: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}
    for feeds in data.batches(batch_size):
        values = session.run(feeds)
        require_finite(analysis, values)
        for layer in layers:
            y = np.moveaxis(values[layer.out], layer.out_axis, 0)
            y = y.reshape(len(y), -1)
            if y.shape[1] > OVERSAMPLE * len(y):
                y = y[:, rng.integers(0, y.shape[1], OVERSAMPLE * len(y))]
            y = np.ascontiguousarray(y, np.float32)
            count, total, squares = sums.get(layer.out, (0, np.zeros(()), np.zeros(())))
            sums[layer.out] = (
                count + y.shape[1],
                total + y.sum(1, dtype=np.float64),
                squares + (y @ y.T).astype(np.float64),
            )
    return {layer.out: _find_directions(*sums[layer.out], layer.op == "MatMul") for layer in layers}


def _find_directions(count: int, total: np.ndarray, squares: np.ndarray, about_zero: bool) -> Basis:
    """Return the eigenvectors of second moments; those of the largest eigenvalues first."""
    mean = np.zeros_like(total) if about_zero else total / max(count, 1)
    covariance = squares / max(count, 1) - np.outer(mean, mean)
    variances, vectors = np.linalg.eigh(covariance)
    return Basis(vectors[:, ::-1], mean, np.maximum(variances[::-1], 0.0), count)
