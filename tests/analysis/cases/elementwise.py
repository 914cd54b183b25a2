"""Elementwise operators."""

from __future__ import annotations

from cases.case import Case, between

_IN_UNIT = "c = Sigmoid(a)"
_INTEGERS = "c = Cast<to=7>(a)"
_UNARY = {
    "Abs": "a",
    "Acos": "c",
    "Acosh": "d",
    "Asin": "c",
    "Asinh": "a",
    "Atan": "a",
    "Atanh": "c",
    "Ceil": "a",
    "Celu": "a",
    "Cos": "a",
    "Cosh": "a",
    "Elu": "a",
    "Erf": "a",
    "Exp": "a",
    "Floor": "a",
    "HardSigmoid": "a",
    "Identity": "a",
    "LeakyRelu": "a",
    "Log": "c",
    "Neg": "a",
    "Reciprocal": "d",
    "Relu": "a",
    "Round": "a",
    "Selu": "a",
    "Shrink": "a",
    "Sigmoid": "a",
    "Sign": "a",
    "Sin": "a",
    "Sinh": "a",
    "Softplus": "a",
    "Softsign": "a",
    "Sqrt": "c",
    "Tan": "c",
    "Tanh": "a",
    "ThresholdedRelu": "a",
    "HardSwish": "a",
    "Mish": "a",
    "Gelu": "a",
    "Swish": "a",
}
_OPSET = {"Mish": 18, "Gelu": 20, "Swish": 24}
_BINARY = ["Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum"]
_COMPARE = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]


CASES: dict[str, Case] = {}
CASES |= {
    op: between(f"{_IN_UNIT}; e = Exp(c); d = Add(e, c); b = {op}({x})", opset=_OPSET.get(op, 17))
    for op, x in _UNARY.items()
}
CASES |= {
    op: between(
        f"{_IN_UNIT}; d = Conv(x, w3); e = Softplus(d); b = {op}(c, e)", "float[8,4,3,3] w3"
    )
    for op in _BINARY
}
CASES |= {
    f"{op}_constant": between(f"{_IN_UNIT}; b = {op}(c, v)", "float[8,1,1] v") for op in _BINARY
}
CASES |= {
    f"{op}_scalar": between(f"b = {op}(a, s)", "float s = {2}") for op in ("Add", "Mul", "Pow")
}
CASES |= {
    op: between(f"d = Round(a); z = {op}(d, zero); b = Cast<to=1>(z)", "float[1] zero = {0}")
    for op in _COMPARE
}
CASES |= {
    op: between(
        f"p = Greater(a, w3); q = Less(a, w4); z = {op}(p, q); b = Cast<to=1>(z)",
        "float[8,1,1] w3, float[1] w4",
    )
    for op in ("And", "Or", "Xor")
}
CASES |= {
    f"Bitwise{op}": between(
        f"{_INTEGERS}; z = Bitwise{op}(c, m); b = Cast<to=1>(z)", "int64[1] m = {5}", opset=18
    )
    for op in ("And", "Or", "Xor")
}
CASES |= {
    f"com.microsoft.{op}": between(f"b = com.microsoft.{op}(a{more})", extra)
    for op, more, extra in (("QuickGelu", "", ""), ("FastGelu", "", ""), ("Gelu", "", ""))
}
CASES |= {
    "BitwiseNot": between(f"{_INTEGERS}; z = BitwiseNot(c); b = Cast<to=1>(z)", opset=18),
    "BitShift": between(
        'p = Abs(a); c = Cast<to=13>(p); z = BitShift<direction="LEFT">(c, m); b = Cast<to=1>(z)',
        "uint64[1] m = {2}",
    ),
    "Mod": between(f"{_INTEGERS}; z = Mod(c, m); b = Cast<to=1>(z)", "int64[1] m = {3}"),
    "Not": between("p = Greater(a, w3); z = Not(p); b = Cast<to=1>(z)", "float[8,1,1] w3"),
    "IsNaN": between("p = Log(a); q = IsNaN(p); b = Cast<to=1>(q)"),
    "IsInf": between("p = Relu(a); r = Log(p); q = IsInf(r); b = Cast<to=1>(q)"),
    "Cast": between("c = Cast<to=11>(a); b = Cast<to=1>(c)"),
    "CastLike": between("c = Cast<to=11>(a); b = CastLike(c, x)"),
    "Clip": between("b = Clip(a, lo, hi)", "float lo = {-0.3}, float hi = {0.9}"),
    "Clip_attributes": between("b = Clip<min=-0.3, max=0.9>(a)", opset=8),
    "Clip_no_minimum": between("b = Clip(a, , hi)", "float hi = {0.5}"),
    "PRelu": between("b = PRelu(a, w3)", "float[8,1,1] w3"),
    "Where": between(
        "p = Greater(a, w3); d = Conv(x, w4); b = Where(p, a, d)",
        "float[8,1,1] w3, float[8,4,3,3] w4",
    ),
    "Dropout": between("b, m = Dropout(a)"),
    "BiasGelu": Case(
        (
            "float[2,3,4] x | float[4,8] w1, float[8] w2, float[8,5] w3 | a = MatMul(x, w1); "
            "b = com.microsoft.BiasGelu(a, w2); y = MatMul(b, w3)"
        ),
        groups=(8,),
    ),
}
