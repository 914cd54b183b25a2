"""Worlds of elementwise operators."""

from __future__ import annotations

from types import SimpleNamespace

from onnx import TensorProto

from proving.worlds import Graph, shapes, space

# Operands in (-1, 1), of at least one, and positive
_UNIT = frozenset("Acos Asin Atanh".split())
_ABOVE_ONE = frozenset(["Acosh"])
_POSITIVE = frozenset("Log Reciprocal Sqrt".split())
_INTEGER = frozenset("BitwiseNot BitwiseAnd BitwiseOr BitwiseXor BitShift Mod".split())
_LOGICAL = frozenset("And Not Or Xor".split())
# Attributes that keep float64 exact; the values of others do not matter to channels either
_ATTRIBUTES = {
    "LeakyRelu": {"alpha": 0.5},
    "HardSigmoid": {"alpha": 0.25, "beta": 0.5},
    "Shrink": {"bias": 0.5, "lambd": 1.5},
    "ThresholdedRelu": {"alpha": 2.0},
    "BitShift": {"direction": "LEFT"},
    "Mod": {"fmod": 1},
    "IsInf": {"detect_negative": 1},
}
_OPSETS = {"Swish": 24}


def operand(g: Graph, op: str, shape: tuple[int, ...], kind: str = "free") -> str:
    """Return an operand in the domain of an operator: computed, or a weight."""
    make = g.free if kind == "free" else g.weight
    if op in ("IsInf", "IsNaN"):  # logarithms of zero and of negative values
        tensor = make(shape)
        return g.node("Log", g.node("Relu", tensor, name="") if op == "IsInf" else tensor, name="")
    if op == "Equal":
        return make(shape, 0, 2)
    if op in _UNIT:
        return make(shape, -4, 5, 1 / 16)
    if op in _ABOVE_ONE | _POSITIVE | {"Div", "Mod", "BitShift"}:
        tensor = make(shape, 1, 4)
    else:
        tensor = make(shape)
    if op in _LOGICAL:
        return g.cast(g.node("Relu", tensor, name=""), TensorProto.BOOL)
    if op in _INTEGER:
        to = TensorProto.UINT64 if op == "BitShift" else TensorProto.INT64
        return g.cast(tensor, to)
    return tensor


@space(
    """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Floor
    Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu
    Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh
    ThresholdedRelu""",
    exact="""Abs BitwiseNot Ceil Floor HardSigmoid Identity IsInf IsNaN LeakyRelu Neg Not Relu
    Round Shrink Sign ThresholdedRelu""",
    shape=shapes(1, 2, 3),
)
def unary(g: Graph, c: SimpleNamespace) -> str:
    """One operand of any shape."""
    g.opset = max(g.opset, _OPSETS.get(c.op, 0))
    return g.node(c.op, operand(g, c.op, c.shape), **_ATTRIBUTES.get(c.op, {}))


@space("FastGelu Gelu QuickGelu", runtime="onnxruntime", bias=(False, True), shape=shapes(1, 2, 3))
def contrib_unary(g: Graph, c: SimpleNamespace) -> str | None:
    """Activations of onnxruntime; FastGelu takes a bias along the last axis."""
    if c.bias and c.op != "FastGelu":
        return None
    bias = [g.weight(c.shape[-1:])] if c.bias else []
    return g.node(c.op, g.free(c.shape), *bias, domain="com.microsoft")


@space("BiasGelu", runtime="onnxruntime", bias=("weight", "free"), shape=shapes(1, 2, 3))
def bias_gelu(g: Graph, c: SimpleNamespace) -> str:
    """A bias along the last axis."""
    bias = g.free(c.shape[-1:]) if c.bias == "free" else g.weight(c.shape[-1:])
    return g.node("BiasGelu", g.free(c.shape), bias, domain="com.microsoft")


@space(
    "Cast",
    exact=True,
    to=(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL),
    shape=shapes(1, 2, 3),
)
def cast(g: Graph, c: SimpleNamespace) -> str:
    """Conversion to floats, integers and booleans."""
    return g.node("Cast", g.free(c.shape), to=c.to)


@space("CastLike", exact=True, like=("scalar", "free"), shape=shapes(1, 2, 3))
def cast_like(g: Graph, c: SimpleNamespace) -> str:
    """The type of a scalar or of a computed tensor."""
    like = g.constant(0, "float32") if c.like == "scalar" else g.free((2, 3))
    return g.node("CastLike", g.free(c.shape), like)


@space("Dropout", exact=True, opset=(11, 13, 22), mask=(False, True), shape=shapes(1, 2, 3))
def dropout(g: Graph, c: SimpleNamespace) -> list[str]:
    """Inference, with and without the mask."""
    return g.node_of(2 if c.mask else 1, "Dropout", g.free(c.shape))


def _broadcast(shape: tuple[int, ...], form: str) -> tuple[int, ...]:
    """Return a shape with letters of `form` that are 0 replaced by 1; leading axes absent."""
    tail = shape[len(shape) - len(form) :] if form else ()
    return tuple(n if mark == "n" else 1 for n, mark in zip(tail, form, strict=True))


_FORMS = ("", "1", "n", "11", "1n", "n1", "nn", "11n", "1n1", "n11", "nn1", "1nn", "n1n", "nnn")


@space(
    """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less
    LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Xor""",
    exact="""Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Equal Greater GreaterOrEqual Less
    LessOrEqual Max Min Mod Mul Or PRelu Sub Sum Xor""",
    shape=shapes(1, 2, 3),
    form=_FORMS,
    second=("free", "weight"),
    swap=(False, True),
)
def binary(g: Graph, c: SimpleNamespace) -> str | None:
    """Two operands of all shapes that broadcast, the second computed or a weight."""
    if len(c.form) > len(c.shape) or (c.swap and c.op in ("PRelu", "Pow")):
        return None
    first = operand(g, "Log" if c.op == "Pow" else c.op, c.shape)
    if c.op == "Pow":
        second = g.weight(_broadcast(c.shape, c.form), 1, 4)
    else:
        second = operand(g, c.op, _broadcast(c.shape, c.form), c.second)
    pair = (second, first) if c.swap else (first, second)
    return g.node(c.op, *pair, **_ATTRIBUTES.get(c.op, {}))


@space(
    "Max Mean Min Sum",
    exact="Max Min Sum",
    shape=shapes(2, 3),
    forms=[(a, b) for a in _FORMS for b in _FORMS],
    first=_FORMS[-7:],
)
def variadic(g: Graph, c: SimpleNamespace) -> str | None:
    """Three operands, none of which need have the shape of the result."""
    if any(len(f) > len(c.shape) for f in (*c.forms, c.first)):
        return None
    return g.node(c.op, *[g.free(_broadcast(c.shape, f)) for f in (c.first, *c.forms)])


@space("Where", exact=True, shape=shapes(1, 2, 3), condition=_FORMS, first=_FORMS, second=_FORMS)
def where(g: Graph, c: SimpleNamespace) -> str | None:
    """Condition and values of all shapes that broadcast."""
    if any(len(f) > len(c.shape) for f in (c.condition, c.first, c.second)):
        return None
    condition = operand(g, "Not", _broadcast(c.shape, c.condition))
    values = [g.free(_broadcast(c.shape, f)) for f in (c.first, c.second)]
    return g.node("Where", condition, *values)


@space(
    "Clip",
    exact=True,
    opset=(9, 13),
    bounds=((None, 2), (-2, None), (-2, 2), (None, None)),
    shape=shapes(1, 2, 3),
)
def clip(g: Graph, c: SimpleNamespace) -> str:
    """Bounds as attributes and as scalars."""
    low, high = c.bounds
    data = g.free(c.shape)
    if c.opset < 11:
        bounds = {"min": low, "max": high}
        return g.node(
            "Clip", data, **{k: None if v is None else float(v) for k, v in bounds.items()}
        )
    scalars = ["" if v is None else g.constant(v) for v in c.bounds]
    return g.node("Clip", data, *scalars)
