"""Inputs of linear nodes as matrix columns (im2col), and their streamed second moments.

A Conv reads K = C * kh * kw values per output position. `columns` lays them out as a matrix X with
one column per position, `Moments` sums X X^T, X and Y X^T over positions. Activations come from
onnxruntime; the sums are single-precision symmetric BLAS products per batch, accumulated in
float64. ONNX nodes that compute the same take 1.5 times as long at the same peak memory, because
onnxruntime has no symmetric product (`python -m benchmarks.moments`, the shapes of ResNet-50).
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
    """Window of a linear node; one entry per spatial axis.

    Attributes
    ----------
    spatial
        Number of spatial axes; 0 for a matrix product over the last axis.
    kernel, strides, dilations
        As of the ONNX operator.
    before, after
        Padding.
    transposed
        True for ConvTranspose.
    """

    spatial: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    transposed: bool = False

    @property
    def taps(self) -> int:
        """Number of positions that one output reads per channel."""
        return prod(self.kernel)


def geometry(node: NodeProto, weight_shape: Sequence[int], input_shape: Sequence[int]) -> Geometry:
    """Return the window of a Conv, ConvTranspose, Gemm or MatMul.

    Parameters
    ----------
    input_shape
        Shape of one batch, which determines the padding of auto_pad.
    """
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
            reach = (kernel[i] - 1) * dilations[i] + 1
            # ceil(size / stride) outputs, as defined for SAME padding
            total = max((-(-size // strides[i]) - 1) * strides[i] + reach - size, 0)
            small, large = total // 2, total - total // 2
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
    """Draw a random grid of about `most` output positions; all of them if there are fewer.

    Returns
    -------
    tuple of np.ndarray
        Sorted indices per spatial axis.
    """
    sizes = output_shape[2 : 2 + spatial]
    total = prod(sizes)
    if not sizes or total <= most:
        return tuple(np.arange(s) for s in sizes)
    # a grid instead of single positions, since inputs are gathered axis by axis
    share = (most / total) ** (1 / spatial)
    return tuple(np.sort(rng.choice(s, max(1, round(s * share)), replace=False)) for s in sizes)


def columns(x: np.ndarray, window: Geometry, at: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the values that a node reads at some output positions.

    Parameters
    ----------
    x
        Input activation, (samples, channels, *spatial), or (..., channels) without spatial axes.
    at
        Indices of output positions per spatial axis.

    Returns
    -------
    np.ndarray
        float32 (channels * taps, samples * positions); the taps of a channel are adjacent.
    """
    if not window.spatial:
        return np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T, np.float32)
    if window.transposed:
        x, window = _upsample(x, window)
    x = _pad_for(x, window, at)
    # taps next to channels, so that the result is a view of one array
    n, c = x.shape[:2]
    out = np.empty((c, window.taps, n, *map(len, at)), np.float32)
    parts = [x]  # views of x per combination of taps, over the axes handled so far
    for axis, (index, stride, size, dilation) in enumerate(
        zip(at, window.strides, window.kernel, window.dilations, strict=True)
    ):
        # one per tap, a view where positions are evenly spaced
        places = _shift(_as_slice(index * stride), [k * dilation for k in range(size)])
        if axis + 1 < window.spatial:
            parts = [_take(part, place, axis + 2) for part in parts for place in places]
            continue
        for t, (part, place) in enumerate(product(parts, places)):
            out[:, t] = _take(part, place, axis + 2).swapaxes(0, 1)
    return out.reshape(c * window.taps, -1)


def _pad_for(x: np.ndarray, window: Geometry, at: tuple[np.ndarray, ...]) -> np.ndarray:
    """Pad an input so that the windows at all requested positions lie inside."""
    ends = [
        max(int(a[-1]) * s + (k - 1) * d + 1, 0) if len(a) else 0
        for a, s, k, d in zip(at, window.strides, window.kernel, window.dilations, strict=True)
    ]
    # upsampled inputs have no padding at the end: it follows from the positions
    after = [
        max(a, e - b - size, 0)
        for b, a, e, size in zip(window.before, window.after, ends, x.shape[2:], strict=True)
    ]
    return _pad(x, window.before, after)


def _pad(x: np.ndarray, before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    """Surround the spatial axes with zeros."""
    if not any(before) and not any(after):
        return x
    sizes = [b + size + a for b, size, a in zip(before, x.shape[2:], after, strict=True)]
    out = np.zeros((*x.shape[:2], *sizes), x.dtype)
    inside = [slice(b, b + size) for b, size in zip(before, x.shape[2:], strict=True)]
    out[(slice(None), slice(None), *inside)] = x
    return out


def outputs(y: np.ndarray, window: Geometry, at: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return outputs at some positions: float32 (channels, samples * positions)."""
    if not window.spatial:
        return np.ascontiguousarray(y.reshape(-1, y.shape[-1]).T, np.float32)
    for axis, index in enumerate(at):
        y = _take(y, _as_slice(index), axis + 2)
    return np.ascontiguousarray(y.swapaxes(0, 1), np.float32).reshape(y.shape[1], -1)


def _as_slice(index: np.ndarray) -> slice | np.ndarray:
    """Return evenly spaced indices as a slice, which takes a view instead of a copy."""
    if len(index) > 1 and (np.diff(index) == index[1] - index[0]).all():
        return slice(int(index[0]), int(index[-1]) + 1, int(index[1] - index[0]))
    return index


def _shift(place: slice | np.ndarray, steps: Sequence[int]) -> list[slice | np.ndarray]:
    """Return the positions moved by each number of steps."""
    if isinstance(place, slice):
        return [slice(place.start + k, place.stop + k, place.step) for k in steps]
    return [place + k for k in steps]


def _take(x: np.ndarray, place: slice | np.ndarray, axis: int) -> np.ndarray:
    """Return positions of an axis; a view if they are a slice."""
    if isinstance(place, slice):
        return x[(slice(None),) * axis + (place,)]
    return np.take(x, place, axis)


def _upsample(x: np.ndarray, window: Geometry) -> tuple[np.ndarray, Geometry]:
    """Turn the input and window of a transposed convolution into those of a plain one.

    Zeros go between the inputs, and the kernel is read in reverse (see `tap_order`).
    """
    sizes = [(s - 1) * stride + 1 for s, stride in zip(x.shape[2:], window.strides, strict=True)]
    upsampled = np.zeros([*x.shape[:2], *sizes], x.dtype)
    # with stride - 1 zeros between inputs, the plain convolution has stride 1
    upsampled[(slice(None), slice(None), *(slice(None, None, s) for s in window.strides))] = x
    before = tuple(
        d * (k - 1) - b
        for k, d, b in zip(window.kernel, window.dilations, window.before, strict=True)
    )
    # padding larger than the kernel's reach removes inputs at the border
    crop = [max(-b, 0) for b in before]
    upsampled = upsampled[(slice(None), slice(None), *(slice(c, None) for c in crop))]
    plain = Geometry(
        window.spatial,
        window.kernel,
        (1,) * window.spatial,
        window.dilations,
        tuple(max(b, 0) for b in before),
        (0,) * window.spatial,
    )
    return upsampled, plain


def joined(parts: Iterable[tuple[Any, ...]], least: int) -> Iterator[tuple[Any, ...]]:
    """Concatenate consecutive tuples of arrays until they hold at least `least` positions.

    Parameters
    ----------
    parts
        Tuples of arrays whose last axis is positions; an entry that is None stays None.
    """
    pending: list[tuple[Any, ...]] = []
    for part in parts:
        pending.append(part)
        if sum(p[0].shape[-1] for p in pending) >= least:
            yield _concatenate(pending)
            pending = []
    if pending:
        yield _concatenate(pending)


def _concatenate(parts: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Concatenate tuples of arrays along positions, entry by entry."""
    if len(parts) == 1:
        return parts[0]
    return tuple(
        None if arrays[0] is None else np.concatenate(arrays, -1)
        for arrays in zip(*parts, strict=True)
    )


def tap_order(window: Geometry) -> np.ndarray:
    """Return the order of a weight's taps that matches the rows of `columns`."""
    order = np.arange(max(window.taps, 1))
    return order[::-1] if window.transposed else order


Block = tuple[np.ndarray, "np.ndarray | None"]  # columns (K, P), outputs (O, P)


@dataclass
class Moments:
    """Sums over positions of inputs x (K,) and outputs y (O,), all float64.

    Columns are buffered until there are K of them, so that a K x K product pays off; `flush` adds
    the rest.

    Attributes
    ----------
    xx
        (K, K) sum of x x'.
    x
        (K,) sum of x.
    yx
        (O, K) sum of y x'; None without outputs.
    y
        (O,) sum of y; None without outputs.
    count
        Number of positions.
    """

    xx: np.ndarray
    x: np.ndarray
    yx: np.ndarray | None = None
    y: np.ndarray | None = None
    count: int = 0
    _pending: list[Block] = field(default_factory=list, repr=False)

    @staticmethod
    def zeros(inputs: int, outs: int = 0) -> Moments:
        """Return empty sums over K = `inputs` columns and O = `outs` outputs."""
        moments = Moments(np.zeros((inputs, inputs)), np.zeros(inputs))
        if outs:
            moments.yx = np.zeros((outs, inputs))
            moments.y = np.zeros(outs)
        return moments

    def add(self, x: np.ndarray, y: np.ndarray | None = None) -> None:
        """Add columns x (K, P) and outputs y (O, P)."""
        if block := self.buffer(x, y):
            self.include(sum_products(*block))

    def buffer(self, x: np.ndarray, y: np.ndarray | None = None) -> Block | None:
        """Buffer columns and outputs; return all of them once there are K, to be summed."""
        self._pending.append((x, y))
        return self._take() if sum(p.shape[1] for p, _ in self._pending) >= len(self.x) else None

    def _take(self) -> Block:
        """Return the buffered columns and outputs, and buffer no more."""
        x, y = _concatenate(self._pending)
        self._pending.clear()
        return x, y

    def flush(self) -> None:
        """Add the buffered columns."""
        if self._pending:
            self.include(sum_products(*self._take()))

    def include(self, sums: Moments) -> None:
        """Add the sums of a block of columns."""
        self.xx += sums.xx
        self.x += sums.x
        if self.yx is not None and self.y is not None and sums.yx is not None:
            self.yx += sums.yx
            self.y += sums.y
        self.count += sums.count

    def centered(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return count times the covariance of x, and of y with x (None without outputs)."""
        self.flush()
        mean = self.x / max(self.count, 1)
        yx = None if self.yx is None or self.y is None else self.yx - np.outer(self.y, mean)
        return self.xx - np.outer(self.x, mean), yx


def sum_products(x: np.ndarray, y: np.ndarray | None) -> Moments:
    """Return the sums of one block of columns (K, P) and outputs (O, P).

    The products of a block are float32.
    """
    # numpy recognizes x @ x.T and calls the symmetric BLAS routine
    sums = Moments(x @ x.T, x.sum(1, dtype=np.float64), count=x.shape[1])
    if y is not None:
        sums.yx, sums.y = y @ x.T, y.sum(1, dtype=np.float64)
    return sums
