"""Second moments of what a linear node reads, over its taps, streamed in double precision.

A Conv reads K = C * kh * kw values for an output position. `columns` lays them out, `Moments` sums X X^T, X and X Y^T over
positions. Activations come out of onnxruntime; the sums are single-precision symmetric products of BLAS a batch, accumulated
in float64. Nodes in the graph that do the same take 1.5 times as long at the same peak of memory, because onnxruntime has no
symmetric product (python -m benchmarks.moments, the shapes of ResNet-50).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.ir.nodes import attribute


@dataclass(frozen=True)
class Geometry:
    """How a node takes its inputs. spatial: number of spatial axes, 0 for a matrix product on the last axis; sizes an axis."""

    spatial: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    before: tuple[int, ...] = ()  # padding
    after: tuple[int, ...] = ()
    transposed: bool = False

    @property
    def taps(self) -> int:
        """Values read of a channel for one output."""
        return prod(self.kernel)


def geometry(
    node: NodeProto, weight_shape: tuple[int, ...], input_shape: tuple[int, ...]
) -> Geometry:
    """Geometry of a Conv, ConvTranspose, Gemm or MatMul; input_shape: of one batch, for auto_pad."""
    if not node.op_type.startswith("Conv"):
        return Geometry(0)
    kernel = tuple(weight_shape[2:])
    n = len(kernel)
    strides = tuple(attribute(node, "strides") or [1] * n)
    dilations = tuple(attribute(node, "dilations") or [1] * n)
    pads = list(attribute(node, "pads") or [0] * 2 * n)
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        for i, size in enumerate(input_shape[2:]):
            need = max(
                (-(-size // strides[i]) - 1) * strides[i]
                + (kernel[i] - 1) * dilations[i]
                + 1
                - size,
                0,
            )
            small, large = need // 2, need - need // 2
            pads[i], pads[i + n] = (small, large) if mode == "SAME_UPPER" else (large, small)
    return Geometry(
        n,
        kernel,
        strides,
        dilations,
        tuple(pads[:n]),
        tuple(pads[n:]),
        node.op_type == "ConvTranspose",
    )


def positions(
    output_shape: tuple[int, ...], spatial: int, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """A random grid of at most about `most` output positions: indices an axis."""
    sizes = output_shape[2 : 2 + spatial]
    total = prod(sizes)
    if not sizes or total <= most:
        return tuple(np.arange(s) for s in sizes)
    share = (most / total) ** (1 / spatial)
    return tuple(np.sort(rng.choice(s, max(1, round(s * share)), replace=False)) for s in sizes)


def columns(x: np.ndarray, how: Geometry, at: tuple[np.ndarray, ...]) -> np.ndarray:
    """What a node reads: float32 (channels * taps, samples * positions), taps of a channel together."""
    if not how.spatial:
        return np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T, np.float32)
    if how.transposed:
        x, how = _spread(x, how)
    ends = [
        max(int(a[-1]) * s + (k - 1) * d + 1, 0) if len(a) else 0
        for a, s, k, d in zip(at, how.strides, how.kernel, how.dilations, strict=False)
    ]
    x = _padded(
        x,
        how.before,
        [
            max(a, e - b - size, 0)
            for b, a, e, size in zip(how.before, how.after, ends, x.shape[2:], strict=False)
        ],
    )
    n, c = x.shape[:2]
    out = np.empty((c, how.taps, n, *map(len, at)), np.float32)
    parts = [x]  # what a tap of the axes so far reads
    for axis, (index, stride, size, dilation) in enumerate(
        zip(at, how.strides, how.kernel, how.dilations, strict=False)
    ):
        places = [_places(index * stride + k * dilation) for k in range(size)]
        if axis + 1 < how.spatial:
            parts = [_take(part, place, axis + 2) for part in parts for place in places]
            continue
        for t, (part, place) in enumerate(product(parts, places)):
            out[:, t] = _take(part, place, axis + 2).swapaxes(0, 1)
    return out.reshape(c * how.taps, -1)


def _padded(x: np.ndarray, before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    """With zeros around the spatial axes."""
    if not any(before) and not any(after):
        return x
    out = np.zeros(
        (
            *x.shape[:2],
            *(b + size + a for b, size, a in zip(before, x.shape[2:], after, strict=False)),
        ),
        x.dtype,
    )
    out[
        (
            slice(None),
            slice(None),
            *(slice(b, b + size) for b, size in zip(before, x.shape[2:], strict=False)),
        )
    ] = x
    return out


def outputs(y: np.ndarray, how: Geometry, at: tuple[np.ndarray, ...]) -> np.ndarray:
    """Outputs at the same positions: float32 (channels, samples * positions)."""
    if not how.spatial:
        return np.ascontiguousarray(y.reshape(-1, y.shape[-1]).T, np.float32)
    for axis, index in enumerate(at):
        y = _take(y, _places(index), axis + 2)
    return np.ascontiguousarray(y.swapaxes(0, 1), np.float32).reshape(y.shape[1], -1)


def _places(index: np.ndarray) -> slice | np.ndarray:
    """A slice where positions are evenly spaced."""
    if len(index) > 1 and (np.diff(index) == index[1] - index[0]).all():
        return slice(int(index[0]), int(index[-1]) + 1, int(index[1] - index[0]))
    return index


def _take(x: np.ndarray, place: slice | np.ndarray, axis: int) -> np.ndarray:
    """Positions of an axis; a view for a slice."""
    return (
        x[(slice(None),) * axis + (place,)] if isinstance(place, slice) else np.take(x, place, axis)
    )


def _spread(x: np.ndarray, how: Geometry) -> tuple[np.ndarray, Geometry]:
    """A transposed convolution as a plain one: zeros between the inputs, taps in reverse (see `tap_order`)."""
    shape = [
        *x.shape[:2],
        *((s - 1) * stride + 1 for s, stride in zip(x.shape[2:], how.strides, strict=False)),
    ]
    spread = np.zeros(shape, x.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in how.strides))] = x
    before = tuple(
        d * (k - 1) - b for k, d, b in zip(how.kernel, how.dilations, how.before, strict=False)
    )
    crop = [max(-b, 0) for b in before]
    spread = spread[(slice(None), slice(None), *(slice(c, None) for c in crop))]
    plain = Geometry(
        how.spatial,
        how.kernel,
        (1,) * how.spatial,
        how.dilations,
        tuple(max(b, 0) for b in before),
        (0,) * how.spatial,
    )
    return spread, plain


def joined(parts: Iterable[tuple[Any, ...]], least: int) -> Iterator[tuple[Any, ...]]:
    """Tuples of arrays whose last axis is positions (None stays), put together until they have `least` positions."""
    held: list[tuple[Any, ...]] = []
    for part in parts:
        held.append(part)
        if sum(p[0].shape[-1] for p in held) >= least:
            yield _together(held)
            held = []
    if held:
        yield _together(held)


def _together(held: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    return (
        held[0]
        if len(held) == 1
        else tuple(
            None if column[0] is None else np.concatenate(column, -1)
            for column in zip(*held, strict=False)
        )
    )


def tap_order(how: Geometry) -> np.ndarray:
    """Order of a weight's taps that belongs to the order of `columns`."""
    order = np.arange(max(how.taps, 1))
    return order[::-1] if how.transposed else order


@dataclass
class Moments:
    """Sums over positions. xx: (K, K); x: (K,); yx: (O, K); y: (O,); yy: (O,) sum of squares; count: positions. All float64.

    Columns are held back until there are K, so that sums of K * K values are not made for a few; `flush` adds the last ones.
    """

    xx: np.ndarray
    x: np.ndarray
    yx: np.ndarray | None = None
    y: np.ndarray | None = None
    yy: np.ndarray | None = None
    count: int = 0
    _held: list[tuple[np.ndarray, np.ndarray | None]] = field(default_factory=list, repr=False)

    @staticmethod
    def zeros(inputs: int, outs: int = 0) -> Moments:
        """Nothing summed yet."""
        more = (
            (np.zeros((outs, inputs)), np.zeros(outs), np.zeros(outs))
            if outs
            else (None, None, None)
        )
        return Moments(np.zeros((inputs, inputs)), np.zeros(inputs), *more)

    def add(self, x: np.ndarray, y: np.ndarray | None = None) -> None:
        """Add columns x (K, P) and outputs y (O, P)."""
        self._held.append((x, y))
        if sum(part.shape[1] for part, _ in self._held) >= len(self.x):
            self.flush()

    def flush(self) -> None:
        """Add what is held back."""
        if self._held:
            self._add(*_together(self._held))
            self._held.clear()

    def _add(self, x: np.ndarray, y: np.ndarray | None) -> None:
        self.xx += x @ x.T  # numpy uses the symmetric product here
        self.x += x.sum(1, dtype=np.float64)
        if y is not None and self.yx is not None and self.y is not None and self.yy is not None:
            self.yx += y @ x.T
            self.y += y.sum(1, dtype=np.float64)
            self.yy += np.einsum("op,op->o", y, y)
        self.count += x.shape[1]

    def centered(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(covariance of x times count, of y with x times count)."""
        self.flush()
        mean = self.x / max(self.count, 1)
        yx = None if self.yx is None or self.y is None else self.yx - np.outer(self.y, mean)
        return self.xx - np.outer(self.x, mean), yx
