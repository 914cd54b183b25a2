"""What the weights multiply, on calibration data, in the columns of `layout`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from onnx import NodeProto

from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.sparsify.layout import Target
from onnxprune.statistics.im2col import Geometry, Moments, columns, geometry, positions

MOST_COLUMNS = (
    2304  # 256 channels of 3 x 3 taps; a second-moment matrix beyond that costs more than it gives
)
MOST_POSITIONS = 256  # output positions that are looked at in a sample


class Batches(Protocol):
    """Calibration data."""

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Feeds by input name."""


@dataclass
class Reading:
    """squares: mean square of each column, (groups, columns); products: mean products of columns, (groups, columns, columns), where asked for;
    means: of each column; count: positions that they are means of.
    """

    squares: np.ndarray
    products: np.ndarray | None
    means: np.ndarray
    count: int = 0

    def moments(self) -> list[Moments]:
        """A group each, of the columns and a last one of ones, as a refit takes them."""
        if self.products is None:
            return []
        parts = [
            np.block([[p, m[:, None]], [m[None, :], np.ones((1, 1))]]) * self.count
            for p, m in zip(self.products, self.means, strict=False)
        ]
        return [Moments(p, p[-1], count=self.count) for p in parts]


def places(
    node: NodeProto, weight_shape: Sequence[int], x_shape: Sequence[int], rng: np.random.Generator
) -> tuple[Geometry, tuple[np.ndarray, ...]]:
    """(how the node takes its inputs, the output positions to look at)."""
    how = geometry(node, tuple(weight_shape), tuple(x_shape))
    reach = [d * (k - 1) + 1 for d, k in zip(how.dilations, how.kernel, strict=False)]
    sides = zip(x_shape[2:], how.strides, reach, how.before, how.after, strict=False)
    sizes = [
        (n - 1) * s + r - b - a if how.transposed else (n + b + a - r) // s + 1
        for n, s, r, b, a in sides
    ]
    return how, positions((1, 1, *sizes), how.spatial, MOST_POSITIONS, rng)


def read(
    model: Model,
    found: Sequence[Target],
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    products: bool,
    seed: int = 0,
    threads: int = 1,
) -> dict[str, Reading]:
    """One pass over batches of feeds. products: also of pairs of columns, where there are at most 2304."""
    given = {i.name for i in model.proto.graph.input}
    names = dict.fromkeys(n.input[0] for t in found for n in t.nodes if n.input[0] not in given)
    session = Session(model, list(names), threads=threads)
    rng = np.random.default_rng(seed)
    readings: dict[str, Reading] = {}
    for feeds in batches:
        values = {**feeds, **session.run(feeds)}
        for target in found:
            for node in target.nodes:
                x = values[node.input[0]]
                laid = columns(x, *places(node, model.weights[target.tensor].shape, x.shape, rng))
                parts = laid.reshape(target.groups, -1, laid.shape[1])
                _add(readings, target.tensor, parts, products)
    for r in readings.values():
        r.squares, r.means, r.products = (
            r.squares / r.count,
            r.means / r.count,
            None if r.products is None else r.products / r.count,
        )
    return readings


def inverse_diagonal(products: np.ndarray, ridge: float) -> np.ndarray:
    """Diagonal of (G + ridge * mean diagonal)^-1 of each group, (groups, columns)."""
    size = products.shape[1]
    damped = [g + max(ridge * float(np.diag(g).mean()), 1e-12) * np.eye(size) for g in products]
    return np.stack([np.diag(np.linalg.inv(d)) for d in damped])


def _add(readings: dict[str, Reading], name: str, parts: np.ndarray, products: bool) -> None:
    """Sum one batch's columns, (groups, columns, positions)."""
    groups, size, _ = parts.shape
    if name not in readings:
        few = products and size <= MOST_COLUMNS
        readings[name] = Reading(
            np.zeros((groups, size)),
            np.zeros((groups, size, size)) if few else None,
            np.zeros((groups, size)),
        )
    reading = readings[name]
    reading.squares += np.einsum("gkp,gkp->gk", parts, parts, dtype=np.float64)
    reading.means += parts.sum(2, dtype=np.float64)
    reading.count += parts.shape[2]
    if reading.products is not None:
        reading.products += (
            (parts[0] @ parts[0].T)[None] if groups == 1 else parts @ parts.swapaxes(1, 2)
        )  # numpy's symmetric product is of two axes
