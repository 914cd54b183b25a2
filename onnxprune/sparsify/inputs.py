"""Statistics of the inputs that weights multiply, in the columns of `layout`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from onnx import NodeProto

from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.sparsify.layout import LinearWeight
from onnxprune.statistics.im2col import Geometry, Moments, columns, geometry, positions
from onnxprune.statistics.moments import output_shape

# 256 channels of 3 x 3 taps; a larger second-moment matrix costs more than it improves
MAX_COLUMNS = 2304
MAX_POSITIONS = 256  # output positions read per sample
# keeps the matrix invertible if all inputs are zero
MIN_RIDGE = 1e-12


class Batches(Protocol):
    """Calibration data."""

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield feeds by input name."""


@dataclass
class InputStatistics:
    """Means over positions of what one weight multiplies.

    Attributes
    ----------
    squares : numpy.ndarray
        Mean square of each column, (groups, columns).
    products : numpy.ndarray or None
        Mean products of pairs of columns, (groups, columns, columns); None if not measured.
    means : numpy.ndarray
        Mean of each column, (groups, columns).
    count : int
        Positions.
    """

    squares: np.ndarray
    products: np.ndarray | None
    means: np.ndarray
    count: int = 0

    def moments(self) -> list[Moments]:
        """Return the moments per group, of the columns and a last column of ones.

        Empty if the products were not measured.
        """
        if self.products is None:
            return []
        result = []
        for products, means in zip(self.products, self.means, strict=True):
            corner = np.ones((1, 1))
            xx = np.block([[products, means[:, None]], [means[None, :], corner]]) * self.count
            result.append(Moments(xx, xx[-1], count=self.count))
        return result


def sample_positions(
    node: NodeProto, weight_shape: Sequence[int], x_shape: Sequence[int], rng: np.random.Generator
) -> tuple[Geometry, tuple[np.ndarray, ...]]:
    """Return the node's geometry and a random grid of output positions, indices per axis."""
    how = geometry(node, tuple(weight_shape), tuple(x_shape))
    shape = output_shape(tuple(x_shape), how) if how.spatial else ()
    return how, positions(shape, how.spatial, MAX_POSITIONS, rng)


def measure_inputs(
    model: Model,
    targets: Sequence[LinearWeight],
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    products: bool,
    seed: int = 0,
    threads: int = 1,
) -> dict[str, InputStatistics]:
    """Return the input statistics of every tensor, from one pass over batches of feeds.

    Parameters
    ----------
    products
        Measure products of pairs of columns too, for tensors of up to `MAX_COLUMNS` columns.
    """
    inputs = {i.name for i in model.proto.graph.input}
    consumed = [n.input[0] for t in targets for n in t.nodes]
    # graph inputs are in the feeds already
    inner = list(dict.fromkeys(name for name in consumed if name not in inputs))
    session = Session(model, inner, threads=threads)
    rng = np.random.default_rng(seed)
    result: dict[str, InputStatistics] = {}
    for feeds in batches:
        values = {**feeds, **session.run(feeds)}
        for target in targets:
            shape = model.weights[target.tensor].shape
            for node in target.nodes:
                x = values[node.input[0]]
                read = columns(x, *sample_positions(node, shape, x.shape, rng))
                parts = read.reshape(target.groups, -1, read.shape[1])
                if target.tensor not in result:
                    result[target.tensor] = _make_zero_statistics(parts, products)
                _add(result[target.tensor], parts)
    for statistics in result.values():
        statistics.squares = statistics.squares / statistics.count
        statistics.means = statistics.means / statistics.count
        if statistics.products is not None:
            statistics.products = statistics.products / statistics.count
    return result


def inverse_diagonal(products: np.ndarray, ridge: float) -> np.ndarray:
    """Return the diagonal of (G + ridge * mean diagonal of G)^-1 per group, (groups, columns)."""
    size = products.shape[1]
    damped = [g + max(ridge * float(np.diag(g).mean()), MIN_RIDGE) * np.eye(size) for g in products]
    return np.stack([np.diag(np.linalg.inv(d)) for d in damped])


def _make_zero_statistics(parts: np.ndarray, products: bool) -> InputStatistics:
    """Return sums of nothing for columns (groups, columns, positions)."""
    groups, size, _ = parts.shape
    measured = products and size <= MAX_COLUMNS
    return InputStatistics(
        np.zeros((groups, size)),
        np.zeros((groups, size, size)) if measured else None,
        np.zeros((groups, size)),
    )


def _add(sums: InputStatistics, parts: np.ndarray) -> None:
    """Add one batch's columns, (groups, columns, positions)."""
    sums.squares += np.einsum("gkp,gkp->gk", parts, parts, dtype=np.float64)
    sums.means += parts.sum(2, dtype=np.float64)
    sums.count += parts.shape[2]
    if sums.products is not None:
        sums.products += gram(parts)


def gram(parts: np.ndarray) -> np.ndarray:
    """Return X X' per group, of X (groups, columns, positions)."""
    if len(parts) == 1:
        # numpy calls the symmetric product of BLAS for matrices, not for stacks of them
        return (parts[0] @ parts[0].T)[None]
    return parts @ parts.swapaxes(1, 2)
