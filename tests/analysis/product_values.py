"""Graphs of Einsum, recurrent layers and attention, one per equation or attribute value.

Onnxruntime does not run BATCH_FIRST and WINDOWS; onnx's reference does.
"""

from __future__ import annotations

from itertools import product

from attention_forms import StandardForm
from graphs import Case

_EINSUM = (
    "float[2,3,4] x | float[4,6] w0, float[{shape}] w1, float[8,5] w2 | a = MatMul(x, w0); "
    'b = Einsum<equation="{equation}">(a, w1); {after}'
)
_EQUATIONS = {
    "bnc,cd->bnd": "6,8",
    "b n c , c d -> b n d": "6,8",
    "...c,cd->...d": "6,8",
    "...nc,cd->...nd": "6,8",
    "...nc,...cd->...nd": "2,6,8",
    "bnc,...cd->...bnd": "6,8",
    "b...c,cd->b...d": "6,8",
    "b...c,...cd->b...d": "3,6,8",
    "bnc,...cd->b...nd": "3,6,8",
    "bnc,c...->bn...": "6,8",
    "bnc,bcd->bnd": "1,6,8",
    "bnc,ccd->bnd": "6,6,8",
    "abc,cd": "6,8",
    "...c,cd": "6,8",
}
_TRACE = (
    "float[2,8,4] x | float[4,6] w0, float[6,8] w1, float[1,3] w2, int64[1] last = {1} | "
    "a = MatMul(x, w0); c = MatMul(w1, a); "
)
EINSUMS: dict[str, Case] = {
    equation: Case(
        _EINSUM.format(shape=shape, equation=equation, after="y = MatMul(b, w2)"),
        groups=(6, 8),
    )
    for equation, shape in _EQUATIONS.items()
}
EINSUMS |= {
    "bdd->b": Case(
        _TRACE + 'e = Einsum<equation="bdd->b">(c); u = Unsqueeze(e, last); y = MatMul(u, w2)',
        groups=(6,),
    ),
    "bdd->bd": Case(
        (_TRACE + 'e = Einsum<equation="bdd->bd">(c); y = MatMul(e, w2)').replace("[1,3]", "[6,3]"),
        groups=(6,),
    ),
}

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_RECURRENT = (
    "{inputs} | float[{d},{rows},4] w1, float[{d},{rows},6] w2, float[{d},{biases}] w3, "
    "float[4,{states}] w4, int64[3] s = {{2, {d}, 6}}, int64[3] f = {{0, 0, {states}}}, "
    "float[{states},7] w9, float[6,7] w8, int32[2] n = {{5, 3}} | "
    "i = MatMul(h0, w4); r = Reshape(i, s); h = {to_state}(r); "
    "o, p = {op}<hidden_size=6, {attributes}>(x, w1, w2, w3, {lengths}, h); "
    "t = {to_rows}(o); q = Reshape(t, f); m = MatMul(q, w9); z = MatMul(p, w8); "
    "c = ReduceSum<keepdims=0>(z); y = Add(m, c)"
)


def _recurrent(op: str, direction: str, more: str, layout: int = 0) -> Case:
    """Return a layer with a bias, lengths of sequences and a state, both outputs of which count.

    Onnx's reference, which alone evaluates layout 1, takes no lengths.
    """
    d = 2 if direction == "bidirectional" else 1
    rows = _GATES[op] * 6
    return Case(
        _RECURRENT.format(
            inputs=f"float[{'2,5' if layout else '5,2'},4] x, float[2,4] h0",
            d=d,
            rows=rows,
            biases=2 * rows,
            states=6 * d,
            to_state="Relu" if layout else "Transpose<perm=[1,0,2]>",
            to_rows="Relu" if layout else "Transpose<perm=[0,2,1,3]>",
            op=op,
            lengths="" if layout else "n",
            attributes=f'direction="{direction}", layout={layout}{more}',
        ),
        groups=(6, 7),
    )


def _variants(op: str, directions: int) -> dict[str, str]:
    """Return the attributes that change how a recurrent layer computes."""
    functions = {"LSTM": ("Sigmoid", "Relu", "Tanh"), "GRU": ("Sigmoid", "Relu"), "RNN": ("Relu",)}
    listed = ", ".join(f'"{f}"' for f in functions[op] * directions)
    variants = {"": "", "clip": ", clip=0.3", "activations": f", activations=[{listed}]"}
    if op == "GRU":
        variants["linear_before_reset"] = ", linear_before_reset=1"
    if op == "LSTM":
        variants["input_forget"] = ", input_forget=1"
    return variants


RECURRENT: dict[str, Case] = {
    f"{op} {direction} {name}": _recurrent(op, direction, more)
    for op, direction in product(_GATES, ("forward", "reverse", "bidirectional"))
    for name, more in _variants(op, 1 + (direction == "bidirectional")).items()
}
BATCH_FIRST: dict[str, Case] = {
    f"{op} {direction}": _recurrent(op, direction, "", layout=1)
    for op, direction in product(_GATES, ("forward", "reverse", "bidirectional"))
}
_WINDOWS = ("left_window_size=1", "left_window_size=1, right_window_size=0", "is_causal=1")
WINDOWS: dict[str, Case] = {
    attributes: Case(StandardForm(key_heads=2, attributes=attributes).text, 25, (2, 2, 6, 6))
    for attributes in _WINDOWS
}
