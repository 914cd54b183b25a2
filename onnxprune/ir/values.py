"""Evaluation of the small tensors that shapes are computed from.

Each entry of EVALUATE implements one op on arrays whose elements may be unknown (None) or symbols
(str). Such arrays have dtype object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.ir.nodes import attribute

Dim = int | str | None  # a length, a symbol, or unknown
LARGEST_VALUE = 4096  # elements; larger constants are weights, not shapes
_LONGEST_SYMBOL = 120  # characters
_TIMES = "\u00b7"  # between the factors of a product of symbols


def is_static(dims: Sequence[Dim]) -> TypeGuard[Sequence[int]]:
    """Return whether all dimensions are numbers."""
    return all(isinstance(d, int) for d in dims)


def product(dims: Sequence[Any]) -> Dim:
    """Return the product of known dimensions.

    A symbolic product spells its factors in sorted order, so that equal products are equal strings.
    """
    number = 1
    symbols = []
    for d in dims:
        for part in d.split(_TIMES) if isinstance(d, str) else [d]:
            if isinstance(part, str) and not part.isdecimal():
                symbols.append(part)
            else:
                number *= int(part)
    # a product of 0 elements is 0 whatever its symbols are
    if number == 0:
        return 0
    if not symbols:
        return number
    factor = [str(number)] if number != 1 else []
    return _TIMES.join([*factor, *sorted(symbols)])


def quotient(a: Dim, b: Dim) -> Dim:
    """Return a / b if it is exact, else None."""
    (numerator, over), (denominator, under) = _factors(a), _factors(b)
    # each symbol of the divisor must cancel one of the dividend
    for symbol in under:
        if symbol not in over:
            return None
        over.remove(symbol)
    if not denominator or numerator % denominator:
        return None
    return product([numerator // denominator, *over])


def _factors(d: Dim) -> tuple[int, list[str]]:
    """Return the number and the symbols of a product."""
    parts = str(d).split(_TIMES)
    number = next((p for p in parts if p.isdecimal()), 1)
    return int(number), [p for p in parts if not p.isdecimal()]


def symbols_of(d: Dim) -> list[str]:
    """Return the symbols of a product, each as often as it occurs."""
    return [] if isinstance(d, int) else _factors(d)[1]


def compact(value: np.ndarray) -> np.ndarray:
    """Return an object array as int64 if all elements are integers."""
    integers = all(isinstance(v, int | np.integer) for v in value.ravel())
    return value.astype(np.int64) if integers else value


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a numpy function; an element is unknown if one of its operands is not a number."""

    def scalar(*xs: Any) -> Any:
        if any(x is None or isinstance(x, str) for x in xs):
            return None
        return np.asarray(function(*map(np.asarray, xs))).item()

    def apply(node: NodeProto, *xs: np.ndarray) -> np.ndarray:
        if any(x.dtype == object for x in xs):
            return compact(np.asarray(np.frompyfunc(scalar, len(xs), 1)(*xs), object))
        return np.asarray(function(*xs))

    return apply


def _symbolic(
    function: Callable[[Any, Any], Dim], numeric: Callable[..., Any]
) -> Callable[..., Any]:
    """Apply `function` to pairs of numbers and symbols, or `numeric` if there are only numbers."""

    def scalar(x: Any, y: Any) -> Any:
        if not all(isinstance(v, int | np.integer | str) for v in (x, y)):
            return None
        # symbols stand for lengths; a number may be negative, such as the -1 of a target
        if not isinstance(x, str) and not isinstance(y, str):
            return np.asarray(numeric(np.asarray(x), np.asarray(y))).item()
        return function(x, y)

    def apply(node: NodeProto, *xs: np.ndarray) -> np.ndarray:
        if any(x.dtype == object for x in xs):
            return compact(np.asarray(np.frompyfunc(scalar, 2, 1)(*xs), object))
        return np.asarray(numeric(*xs))

    return apply


def _extremum(function: np.ufunc) -> Callable[..., Any]:
    """Apply Min or Max, which take any number of operands; of equal symbols, it is that symbol."""

    def scalar(*xs: Any) -> Any:
        if any(x is None or isinstance(x, str) for x in xs):
            return xs[0] if len(set(xs)) == 1 else None
        return np.asarray(function.reduce(xs)).item()

    def apply(node: NodeProto, *xs: np.ndarray) -> np.ndarray:
        if any(x.dtype == object for x in xs):
            return compact(np.asarray(np.frompyfunc(scalar, len(xs), 1)(*xs), object))
        return np.asarray(function.reduce(np.broadcast_arrays(*xs)))

    return apply


def _sum(x: Any, y: Any) -> Dim:
    """Return x + y; a symbol of its own if one of them is a symbol."""
    if not isinstance(x, str) and not isinstance(y, str):
        return x + y
    # adding 0 must not make a new symbol: equal lengths are recognized by their spelling
    if 0 in (x, y):
        return y if x == 0 else x
    # the negative of a length would compare equal to -1
    if any(not isinstance(v, str) and v < 0 for v in (x, y)):
        return None
    return _make_symbol("+", *sorted(map(str, (x, y))))


def truncated_quotient(x: Any, y: Any) -> Dim:
    """Return x / y, truncated."""
    exact = quotient(x, y)
    # a symbol stands for a length, which a number of 0 or less does not give
    if exact is not None or any(not isinstance(v, str) and v <= 0 for v in (x, y)):
        return exact
    return _make_symbol("/", str(x), str(y))


def _make_symbol(operation: str, x: str, y: str) -> Dim:
    """Return the symbol of a computed length; None if it would be too long to be of use."""
    # the sign of products would split the symbol, which is a single factor
    symbol = f"?({x}{operation}{y})".replace(_TIMES, "*")
    return symbol if len(symbol) <= _LONGEST_SYMBOL else None


def _equal(x: Any, y: Any) -> Any:
    """Compare; a symbol is a length, equal to itself and to no negative number."""
    numbers = [v for v in (x, y) if not isinstance(v, str)]
    if x == y or len(numbers) == 2:
        return bool(x == y)
    return False if numbers and numbers[0] < 0 else None


def _where(node: NodeProto, condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if condition.dtype != object:
        return compact(np.where(condition, a, b))

    def scalar(c: Any, x: Any, y: Any) -> Any:
        if c is None:
            # an unknown condition does not matter if both sides agree
            return x if x == y else None
        return x if c else y

    return compact(np.asarray(np.frompyfunc(scalar, 3, 1)(condition, a, b), object))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divide as ONNX does: integers are truncated towards zero."""
    if not np.issubdtype(a.dtype, np.integer):
        return a / b
    # // rounds down, which is no truncation where the signs differ
    return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)


def _axes(node: NodeProto, axes: tuple[np.ndarray, ...]) -> tuple[int, ...] | None:
    """Return the axes from the optional operand or, in older opsets, from the attribute."""
    values = axes[0] if axes else attribute(node, "axes")
    return None if values is None else tuple(int(a) for a in values)


def _cast(node: NodeProto, x: np.ndarray) -> np.ndarray:
    if x.dtype == object:
        return x
    return x.astype(helper.tensor_dtype_to_np_dtype(attribute(node, "to")))


def _slice(node: NodeProto, x: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    # before opset 10 the bounds are attributes
    starts, ends, *more = rest or [attribute(node, k) for k in ("starts", "ends", "axes")]
    axes, steps = (*more, None, None)[:2]
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        stop: int | None = int(end)
        # numpy would count such an end from the back once more
        if step < 0 and int(end) < -x.shape[int(axis)]:
            stop = None
        index[int(axis)] = slice(int(start), stop, int(step))
    return x[tuple(index)]


def _clip(
    node: NodeProto, x: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None
) -> np.ndarray | None:
    low = attribute(node, "min") if low is None else low
    high = attribute(node, "max") if high is None else high
    return None if x.dtype == object else np.clip(x, low, high).astype(x.dtype)


def _squeeze(node: NodeProto, x: np.ndarray, *axes: np.ndarray) -> np.ndarray:
    return np.squeeze(x, _axes(node, axes))


def _unsqueeze(node: NodeProto, x: np.ndarray, *axes: np.ndarray) -> np.ndarray:
    return np.expand_dims(x, _axes(node, axes) or ())


def _check_shape(shape: np.ndarray) -> tuple[int, ...]:
    """Return a shape; ValueError if unknown or over LARGEST_VALUE elements."""
    # as float, since the product of a hostile shape overflows int64
    if shape.dtype == object or np.prod(shape.astype(float)) > LARGEST_VALUE:
        raise ValueError("not a small known shape")
    return tuple(int(d) for d in shape)


def _constant_of_shape(node: NodeProto, shape: np.ndarray) -> np.ndarray:
    fill = attribute(node, "value")
    dims = _check_shape(shape)
    return np.full(dims, np.float32(0) if fill is None else numpy_helper.to_array(fill)[0])


def _expand(node: NodeProto, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, _check_shape(shape)))


def _range(node: NodeProto, start: np.ndarray, end: np.ndarray, step: np.ndarray) -> np.ndarray:
    _check_shape(np.array([max(0, abs((end - start) / step))]))
    # arrays without axes, because Python numbers would round the length differently
    return np.arange(start, end, step, start.dtype)  # type: ignore[call-overload]  # stubs take numbers only


def _concat(node: NodeProto, *xs: np.ndarray) -> np.ndarray:
    if any(x.dtype == object for x in xs):
        xs = tuple(x.astype(object) for x in xs)
    return np.concatenate(xs, attribute(node, "axis", 0))


def _gather(node: NodeProto, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.asarray(np.take(x, indices, attribute(node, "axis", 0)), x.dtype)


def _reshape(node: NodeProto, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return x.reshape([x.shape[i] if d == 0 else int(d) for i, d in enumerate(shape)])


def _transpose(node: NodeProto, x: np.ndarray) -> np.ndarray:
    return np.transpose(x, attribute(node, "perm"))


def _reduce(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(node: NodeProto, x: np.ndarray, *axes: np.ndarray) -> np.ndarray | None:
        reduced = _axes(node, axes) or None  # an empty list stands for all axes, unlike in numpy
        if reduced is None and attribute(node, "noop_with_empty_axes", 0):
            return x
        keepdims = bool(attribute(node, "keepdims", 1))
        if x.dtype == object:
            return _multiply_list(x, keepdims) if function is np.prod and x.ndim == 1 else None
        return np.asarray(function(x, axis=reduced, keepdims=keepdims), x.dtype)

    return apply


def _multiply_list(x: np.ndarray, keepdims: bool) -> np.ndarray:
    """Return the product of a list of numbers and symbols; unknown if one of them is."""
    value = None if any(d is None for d in x) else product(x.tolist())
    return np.array([value] if keepdims else value, object)


def _mod(node: NodeProto, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # with fmod, the sign is that of the dividend
    remainder = np.fmod if attribute(node, "fmod", 0) else np.mod
    result: np.ndarray = _elementwise(remainder)(node, a, b)
    return result


def _tile(node: NodeProto, x: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    _check_shape(np.array(x.shape) * repeats)
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
    "Greater": np.greater,
    "Less": np.less,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
}
# op -> function (node, operands) -> value, or None if unknown
EVALUATE: dict[str, Callable[..., Any]] = {
    **{op: _elementwise(function) for op, function in _NUMERIC.items()},
    "Add": _symbolic(_sum, np.add),
    "Equal": _symbolic(_equal, np.equal),
    "Mul": _symbolic(lambda x, y: product([x, y]), np.multiply),
    "Div": _symbolic(truncated_quotient, _divide),
    "Min": _extremum(np.minimum),
    "Max": _extremum(np.maximum),
    "Mod": _mod,
    "Cast": _cast,
    "Clip": _clip,
    "Identity": lambda node, x: x,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Gather": _gather,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Where": _where,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Expand": _expand,
    "Tile": _tile,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
}

# element types of the constants that are evaluated
VALUE_TYPES = {
    TensorProto.INT64,
    TensorProto.INT32,
    TensorProto.BOOL,
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.UINT8,
    TensorProto.FLOAT16,
}
