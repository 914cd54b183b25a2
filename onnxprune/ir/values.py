"""Small known values that shapes are computed from: each op itself, on arrays that may hold unknowns. A dimension is an int, a symbol (str), or None."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.ir.nodes import attribute

Dim = int | str | None
LARGEST_VALUE = 4096  # elements; larger constants are weights, not shapes
_TIMES = "\u00b7"  # between the factors of a product of symbols


def known(dims: Sequence[Dim]) -> TypeGuard[Sequence[int]]:
    """Whether all of them are numbers."""
    return all(isinstance(d, int) for d in dims)


def product(dims: Sequence[Any]) -> Dim:
    """Product of known dimensions: a number, or a symbol that spells its factors in one order."""
    number, symbols = 1, []
    for d in dims:
        for part in d.split(_TIMES) if isinstance(d, str) else [d]:
            if isinstance(part, str) and not part.isdecimal():
                symbols.append(part)
            else:
                number *= int(part)
    if number == 0:
        return 0
    return (
        _TIMES.join([*([str(number)] if number != 1 else []), *sorted(symbols)])
        if symbols
        else number
    )


def quotient(a: Dim, b: Dim) -> Dim:
    """A / b where it comes out even; None elsewhere."""
    (n, over), (m, under) = (
        (
            int(next((p for p in str(d).split(_TIMES) if p.isdecimal()), 1)),
            [p for p in str(d).split(_TIMES) if not p.isdecimal()],
        )
        for d in (a, b)
    )
    for symbol in under:
        if symbol not in over:
            return None
        over.remove(symbol)
    return product([n // m, *over]) if m and n % m == 0 else None


def compact(value: np.ndarray) -> np.ndarray:
    """An object array as int64 where all elements are integers."""
    flat = value.ravel()
    return value.astype(np.int64) if all(isinstance(v, int | np.integer) for v in flat) else value


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Elementwise; an element is unknown where one of its operands is."""

    def scalar(*xs: Any) -> Any:
        return (
            None
            if any(x is None or isinstance(x, str) for x in xs)
            else np.asarray(function(*map(np.asarray, xs))).item()
        )

    def apply(node: NodeProto, *xs: np.ndarray) -> np.ndarray:
        if any(x.dtype == object for x in xs):
            return compact(np.asarray(np.frompyfunc(scalar, len(xs), 1)(*xs), object))
        return np.asarray(function(*xs))

    return apply


def _symbolic(
    function: Callable[[Any, Any], Dim], otherwise: Callable[..., Any]
) -> Callable[..., Any]:
    """Elementwise on numbers and symbols, by `function` where there is a symbol."""

    def scalar(x: Any, y: Any) -> Any:
        if x is None or y is None or not all(isinstance(v, int | np.integer | str) for v in (x, y)):
            return None
        return function(x, y)

    def apply(node: NodeProto, *xs: np.ndarray) -> np.ndarray:
        if any(x.dtype == object for x in xs):
            return compact(np.asarray(np.frompyfunc(scalar, 2, 1)(*xs), object))
        return np.asarray(otherwise(*xs))

    return apply


def _sum(x: Any, y: Any) -> Dim:
    """Of numbers, or of a length and nothing."""
    return (
        x + y
        if not isinstance(x, str) and not isinstance(y, str)
        else x
        if y == 0
        else y
        if x == 0
        else None
    )


def _equal(x: Any, y: Any) -> Any:
    """A symbol is a length: equal to itself, and to no negative number."""
    numbers = [v for v in (x, y) if not isinstance(v, str)]
    return (
        bool(x == y)
        if x == y or len(numbers) == 2
        else False
        if numbers and numbers[0] < 0
        else None
    )


def _where(node: NodeProto, condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if condition.dtype != object:
        return compact(np.where(condition, a, b))
    either = np.frompyfunc(
        lambda c, x, y: (x if x == y else None) if c is None else x if c else y, 3, 1
    )
    return compact(np.asarray(either(condition, a, b), object))


def _div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """ONNX division: integers truncate towards zero."""
    return (
        (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)
        if np.issubdtype(a.dtype, np.integer)
        else a / b
    )


def _axes(node: NodeProto, axes: tuple[np.ndarray, ...]) -> tuple[int, ...] | None:
    found = axes[0] if axes else attribute(node, "axes")
    return None if found is None else tuple(int(a) for a in found)


def _cast(node: NodeProto, x: np.ndarray) -> np.ndarray:
    return (
        x if x.dtype == object else x.astype(helper.tensor_dtype_to_np_dtype(attribute(node, "to")))
    )


def _slice(node: NodeProto, x: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    starts, ends, *more = rest or [attribute(node, k) for k in ("starts", "ends", "axes")]
    axes, steps = (*more, None, None)[:2]
    axes = range(len(starts)) if axes is None else axes
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(
        starts, ends, axes, [1] * len(starts) if steps is None else steps, strict=False
    ):
        stop = int(end)
        index[int(axis)] = slice(
            int(start), None if step < 0 and stop < -x.shape[int(axis)] else stop, int(step)
        )
    return x[tuple(index)]


def _clip(
    node: NodeProto, x: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None
) -> np.ndarray | None:
    low, high = (
        attribute(node, "min") if low is None else low,
        attribute(node, "max") if high is None else high,
    )
    return None if x.dtype == object else np.clip(x, low, high).astype(x.dtype)


def _squeeze(node: NodeProto, x: np.ndarray, *axes: np.ndarray) -> np.ndarray:
    return np.squeeze(x, _axes(node, axes))


def _unsqueeze(node: NodeProto, x: np.ndarray, *axes: np.ndarray) -> np.ndarray:
    return np.expand_dims(x, _axes(node, axes) or ())


def _small(shape: np.ndarray) -> tuple[int, ...]:
    if shape.dtype == object or np.prod(shape.astype(float)) > LARGEST_VALUE:
        raise ValueError("not a small known shape")
    return tuple(int(d) for d in shape)


def _fill(node: NodeProto, shape: np.ndarray) -> np.ndarray:
    value = attribute(node, "value")
    return np.full(
        _small(shape), numpy_helper.to_array(value)[0] if value is not None else np.float32(0)
    )


def _expand(node: NodeProto, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, _small(shape)))


def _range(node: NodeProto, start: np.ndarray, end: np.ndarray, step: np.ndarray) -> np.ndarray:
    _small(np.array([max(0, abs((end - start) / step))]))
    return np.arange(start, end, step, start.dtype)  # type: ignore[call-overload]  # numbers, as arrays without axes


def _reshape_value(node: NodeProto, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return x.reshape([x.shape[i] if d == 0 else int(d) for i, d in enumerate(shape)])


def _reduce(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(node: NodeProto, x: np.ndarray, *axes: np.ndarray) -> np.ndarray | None:
        return (
            None
            if x.dtype == object
            else np.asarray(
                function(x, axis=_axes(node, axes), keepdims=bool(attribute(node, "keepdims", 1))),
                x.dtype,
            )
        )

    return apply


def _tile(node: NodeProto, x: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    _small(np.array(x.shape) * repeats)
    return np.tile(x, repeats.tolist())


_NUMERIC: dict[str, Callable[..., Any]] = {
    "Sub": np.subtract,
    "Neg": np.negative,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Pow": lambda a, b: np.power(a, b).astype(a.dtype),
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.round,
    "Mod": np.mod,
    "Greater": np.greater,
    "Less": np.less,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
}
EVALUATE: dict[str, Callable[..., Any]] = {
    **{op: _arithmetic(function) for op, function in _NUMERIC.items()},
    "Add": _symbolic(_sum, np.add),
    "Equal": _symbolic(_equal, np.equal),
    "Mul": _symbolic(lambda x, y: product([x, y]), np.multiply),
    "Div": _symbolic(quotient, _div),
    "Min": lambda node, *xs: _arithmetic(lambda *ys: np.minimum.reduce(np.broadcast_arrays(*ys)))(
        node, *xs
    ),
    "Max": lambda node, *xs: _arithmetic(lambda *ys: np.maximum.reduce(np.broadcast_arrays(*ys)))(
        node, *xs
    ),
    "Cast": _cast,
    "Clip": _clip,
    "Identity": lambda node, x: x,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda node, *xs: np.concatenate(
        [x.astype(object) for x in xs] if any(x.dtype == object for x in xs) else xs,
        attribute(node, "axis", 0),
    ),
    "Gather": lambda node, x, i: np.asarray(np.take(x, i, attribute(node, "axis", 0)), x.dtype),
    "Reshape": _reshape_value,
    "Transpose": lambda node, x: np.transpose(x, attribute(node, "perm")),
    "Where": _where,
    "ConstantOfShape": _fill,
    "Range": _range,
    "Expand": _expand,
    "Tile": _tile,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
}

VALUE_TYPES = {
    TensorProto.INT64,
    TensorProto.INT32,
    TensorProto.BOOL,
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.UINT8,
    TensorProto.FLOAT16,
}
