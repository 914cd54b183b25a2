"""Graphs with If, Loop and Scan.

Channels enter the bodies as operands and as captured values, are carried between iterations by
states, and leave again.
"""

from __future__ import annotations

from graphs import Case

_IMAGE = "float[2,4,6,6] x, bool c | float[8,4,1,1] w1, float[5,8,1,1] w2"
_STEP = (
    "xi = Gather(x, i)\n p = MatMul(xi, w1)\n q = MatMul(s, w2)\n r = Add(p, q)\n u = Add(r, "
    "b)\n s2 = Tanh(u)"
)
_CELL = "float[4,8] w1, float[8,8] w2, float[8] b, float[8,3] w3"


def branches(
    then: str,
    otherwise: str,
    weights: str,
    shape: str = "2,8,6,6",
    groups: tuple[int, ...] | None = None,
) -> Case:
    """Return a convolution, an If that computes `b` from its output `a`, and a convolution."""
    bodies = (
        f"then_branch = g1 () => (float[{shape}] p) {{ {then} }}, "
        f"else_branch = g2 () => (float[{shape}] q) {{ {otherwise} }}"
    )
    return Case(
        f"{_IMAGE}, {weights} | a = Conv(x, w1); b = If(c) <{bodies}>; y = Conv(b, w2)",
        groups=groups,
    )


def looped(
    step: str,
    head: str,
    weights: str = _CELL,
    states: str = "h0",
    results: str = "h",
    inputs: str = "float[2,8] s",
    outputs: str = "float[2,8] s2",
    end: str = "y = MatMul(h, w3)",
    groups: tuple[int, ...] | None = (8,),
    cond: str = "k2 = Identity(k)",
    count: str = "n",
    start: str = "",
    x: str = "float[5,2,4] x",
    out: str = "float[] y",
    opset: int = 17,
) -> Case:
    """Return nodes, a Loop of five iterations, and nodes after it."""
    body = f"g (int64 i, bool k, {inputs}) => (bool k2, {outputs}) {{ {step}\n {cond} }}"
    return Case(
        (
            f"{x} | {weights}, int64 n = {{5}}, bool t = {{1}} | "
            f"{head} {results} = Loop({count}, {start}, {states}) <body = {body}>; {end} | {out}"
        ),
        opset,
        groups,
    )


def scanned(
    step: str,
    inputs: str,
    outputs: str,
    call: str,
    end: str,
    weights: str,
    attributes: str = "num_scan_inputs = 1",
    x: str = "float[5,2,4] x",
    head: str = "",
    groups: tuple[int, ...] | None = (8,),
    out: str = "float[] y",
) -> Case:
    """Return nodes, a Scan, and nodes after it."""
    return Case(
        (
            f"{x} | {weights} | {head} {call} <{attributes}, body = g ({inputs}) => ({outputs}) "
            f"{{ {step} }}>; {end} | {out}"
        ),
        groups=groups,
    )


BODIES: dict[str, Case] = {
    "if_convolutions": branches(
        "t = Conv(a, w3)\n p = Conv(t, w4)",
        "u = Conv(a, w4)\n q = Conv(u, w3)",
        "float[8,8,1,1] w3, float[8,8,1,1] w4",
        groups=(8,),  # both branches share both weights, which couples all of them
    ),
    "if_one_branch_passes_by": branches(
        "p = Identity(a)",
        "u = Conv(a, w3)\n r = Relu(u)\n q = Conv(r, w4)",
        "float[6,8,1,1] w3, float[8,6,1,1] w4",
        groups=(6, 8),
    ),
    "if_weights_chosen": Case(
        "float[2,4] x, bool c | float[4,8] w1, float[4,8] w2, float[8,5] w3 | "
        "w = If(c) <then_branch = g1 () => (float[4,8] p) { p = Identity(w1) }, "
        "else_branch = g2 () => (float[4,8] q) { q = Identity(w2) }>;"
        "a = MatMul(x, w); r = Relu(a); y = MatMul(r, w3)",
        groups=(8,),
    ),
    "if_constants_returned": Case(
        f"{_IMAGE}, float half = {{0.5}} | a = Conv(x, w1); "
        f"d = If(c) <then_branch = g1 () => (float p) {{ p = Constant<value_float=2.0>() }}, "
        f"else_branch = g2 () => (float q) {{ q = Identity(half) }}>;"
        "b = Mul(a, d); y = Conv(b, w2)",
        groups=(8,),
    ),
    "if_several_results": Case(
        f"{_IMAGE}, float[6,8,1,1] w3, float[6,8,1,1] w4, float[5,6,1,1] w5 | a = Conv(x, w1);"
        "b, d = If(c) <then_branch = g1 () => (float[2,8,6,6] p, "
        "float[2,6,6,6] p2) { p = Sigmoid(a)\n p2 = Conv(a, w3) },"
        "else_branch = g2 () => (float[2,8,6,6] q, float[2,6,6,6] q2) { q = Relu(a)\n q2 = "
        "Conv(q, w4) }>; e = Conv(b, w2); f = Conv(d, w5); y = Add(e, f)",
        groups=(6, 8),
    ),
    "if_other_lengths": Case(
        "float[2,4] x, bool c | float[4,8] w1, float[4,6] w2, float[6,8] w4, float[2,5] w5 | "
        "a = MatMul(x, w1);"
        "b = If(c) <then_branch = g1 () => (float[2,n] p) { p = Relu(a) }, "
        "else_branch = g2 () => (float[2,n] q) { u = MatMul(x, w2)\n q = Relu(u) }>; "
        "s = ReduceSum(b, one); y = MatMul(w5, s)".replace(
            "float[2,5] w5", "float[5,2] w5, int64[1] one = {1}"
        ),
        groups=(),
    ),
    "if_reshapes_inside": Case(
        "float[2,4,6,6] x, bool c | float[8,4,1,1] w1, int64[2] s = {2, 288}, "
        "float[288,5] w2, float[288,5] w3 | a = Conv(x, w1);"
        "y = If(c) <then_branch = g1 () => (float[2,5] p) { f = Reshape(a, "
        "s)\n p = MatMul(f, w2) }, else_branch = g2 () => (float[2,5] q) { g = Reshape(a, "
        "s)\n q = MatMul(g, w3) }> | float[2,5] y",
        groups=(8,),
    ),
    "if_in_an_if": branches(
        (
            "z = ReduceSum<keepdims=0>(a)\n d = Greater(z, zero)\n p = If(d) <then_branch = g3 "
            "() => (float[2,8,6,6] i) { i = Conv(a, w3) }, else_branch = g4 () => "
            "(float[2,8,6,6] j) { j = Neg(a) }>"
        ),
        "q = Relu(a)",
        "float[8,8,1,1] w3, float zero = {0}",
        groups=(8,),
    ),
    "captured_and_used_outside": Case(
        f"{_IMAGE}, float[8,8,1,1] w3, float[5,8,1,1] w4 | a = Conv(x, w1); "
        f"b = If(c) <then_branch = g1 () => (float[2,8,6,6] p) {{ p = Conv(a, w3) }}, "
        f"else_branch = g2 () => (float[2,8,6,6] q) {{ q = Conv(x, w1) }}>;"
        "d = Conv(b, w2); e = Conv(a, w4); y = Add(d, e)",
        groups=(8,),
    ),
    "loop_recurrent_state": looped(
        _STEP,
        "z = MatMul(x0, w0); h0 = Relu(z);",
        "float[4,8] w0, " + _CELL,
        x="float[5,2,4] x, float[2,4] x0",
    ),
    "loop_state_from_zeros": looped(_STEP, "", "float[2,8] h0, " + _CELL),
    "loop_state_expanded": looped(
        _STEP,
        "s0 = Shape<start=1, end=2>(x); s1 = Concat<axis=0>(s0, m); h0 = Expand(z, s1);",
        "float[1,8] z, int64[1] m = {8}, " + _CELL,
        x="float[5,n,4] x",
        inputs="float[n,8] s",
        outputs="float[n,8] s2",
    ),
    "loop_state_and_stacked": looped(
        _STEP + "\n o = Relu(s2)",
        "",
        "float[2,8] h0, " + _CELL,
        results="h, ys",
        outputs="float[2,8] s2, float[2,8] o",
        end="a = MatMul(ys, w3); e = MatMul(h, w3); y = Add(a, e)",
    ),
    "loop_condition_computed": looped(
        _STEP,
        "",
        "float[2,8] h0, float two = {2}, " + _CELL,
        start="t",
        cond="m = ReduceSum<keepdims=0>(s2)\n k2 = Less(m, two)",
    ),
    "loop_two_states_swapped": looped(
        "p = MatMul(s, w2)\n a2 = Tanh(p)\n b2 = Relu(s)",
        "h0 = MatMul(x, w1); g0 = Neg(h0);",
        "float[4,8] w1, float[8,8] w2, float[8,3] w3",
        states="h0, g0",
        results="h, g",
        inputs="float[2,8] r, float[2,8] s",
        outputs="float[2,8] a2, float[2,8] b2",
        end="e = Add(h, g); y = MatMul(e, w3)",
        x="float[2,4] x",
    ),
    "loop_layer_inside": looped(
        "p = MatMul(s, w2)\n r = Relu(p)\n q = MatMul(r, w4)\n s2 = Add(s, q)",
        "h0 = MatMul(x, w1);",
        "float[4,8] w1, float[8,6] w2, float[6,8] w4, float[8,3] w3",
        x="float[2,4] x",
        groups=(6, 8),
    ),
    "loop_captured_layer": looped(
        "p = Mul(a, s)\n q = MatMul(p, w2)\n s2 = Tanh(q)",
        "a = MatMul(x, w1); h0 = Relu(a);",
        "float[4,8] w1, float[8,8] w2, float[8,3] w3, float[8,3] w4",
        x="float[2,4] x",
        end="e = MatMul(h, w3); f = MatMul(a, w4); y = Add(e, f)",
    ),
    "loop_state_grows": looped(
        (
            "xi = Gather(x, i)\n p = MatMul(xi, w1)\n q = Unsqueeze(p, "
            "zero)\n s2 = Concat<axis=0>(s, q)"
        ),
        "h0 = MatMul(x0, w0);",
        "float[4,8] w0, float[4,8] w1, float[8,3] w3, int64[1] zero = {0}",
        inputs="float[m,2,8] s",
        outputs="float[m2,2,8] s2",
        out="float[m,2,3] y",
        x="float[5,2,4] x, float[1,2,4] x0",
    ),
    "loop_state_of_growing_channels": looped(
        "p = MatMul(x, w1)\n s2 = Concat<axis=1>(s, p)",
        "h0 = MatMul(x, w0);",
        "float[4,8] w0, float[4,8] w1, float[1,2] w3, int64[1] one = {1}",
        x="float[2,4] x",
        inputs="float[2,m] s",
        outputs="float[2,m2] s2",
        end="a = ReduceSum(h, one); y = MatMul(w3, a)",
        groups=(),
        out="float[1,1] y",
    ),
    "if_in_a_loop": looped(
        (
            "m = ReduceSum<keepdims=0>(s)\n d = Less(m, two)\n s2 = If(d) <then_branch = g1 () "
            "=> (float[2,8] p1) { p = MatMul(s, w2)\n p1 = Tanh(p) }, "
            "else_branch = g2 () => (float[2,8] q1) { q1 = Sigmoid(s) }>"
        ),
        "h0 = MatMul(x, w1);",
        "float[4,8] w1, float[8,8] w2, float[8,3] w3, float two = {1}",
        x="float[2,4] x",
    ),
    "loop_in_a_loop": looped(
        (
            "s2 = Loop(n, , s) <body = g2 (int64 j, bool l, float[2,8] v) => (bool l2, "
            "float[2,8] v2) { p = MatMul(v, w2)\n q = Add(p, a)\n v2 = Tanh(q)\n l2 = "
            "Identity(l) }>"
        ),
        "a = MatMul(x, w1); h0 = Relu(a);",
        "float[4,8] w1, float[8,8] w2, float[8,3] w3",
        x="float[2,4] x",
    ),
    "loop_state_not_used": looped(
        "p = MatMul(x, w1)\n o = Relu(p)\n s2 = Add(s, one)",
        "",
        "int64 h0 = {0}, int64 one = {1}, float[4,8] w1, float[8,3] w3",
        inputs="int64 s",
        outputs="int64 s2, float[2,8] o",
        results="h, ys",
        end="y = MatMul(ys, w3)",
        x="float[2,4] x",
    ),
    "loop_trip_count_dynamic": looped(
        _STEP + "\n o = Relu(s2)",
        "s0 = Shape<start=0, end=1>(x); m = Squeeze(s0);",
        "float[2,8] h0, " + _CELL,
        count="m",
        results="h, ys",
        outputs="float[2,8] s2, float[2,8] o",
        end="y = MatMul(ys, w3)",
        x="float[len,2,4] x",
        out="float[len,2,3] y",
    ),
    "scan_of_layers": scanned(
        "p = MatMul(xi, w1)\n r = Relu(p)\n q = MatMul(r, w2)\n o = Relu(q)",
        "float[2,4] xi",
        "float[2,8] o",
        "ys = Scan(x)",
        "y = MatMul(ys, w3)",
        "float[4,6] w1, float[6,8] w2, float[8,3] w3",
        groups=(6, 8),
    ),
    "scan_with_state": scanned(
        "p = MatMul(xi, w1)\n q = MatMul(s, w2)\n r = Add(p, q)\n s2 = Tanh(r)\n o = Identity(s2)",
        "float[2,8] s, float[2,4] xi",
        "float[2,8] s2, float[2,8] o",
        "h, ys = Scan(h0, x)",
        "a = MatMul(ys, w3); e = MatMul(h, w3); y = Add(a, e)",
        "float[2,8] h0, float[4,8] w1, float[8,8] w2, float[8,3] w3",
    ),
    "scan_of_hidden_channels": scanned(
        "q = MatMul(xi, w2)\n o = Relu(q)",
        "float[2,8] xi",
        "float[2,6] o",
        "ys = Scan(a)",
        "y = MatMul(ys, w3)",
        "float[4,8] w1, float[8,6] w2, float[6,3] w3",
        head="a = MatMul(x, w1);",
        groups=(6, 8),
    ),
    "scan_other_axes": scanned(
        "p = MatMul(xi, w2)\n t = Transpose(p)\n r = Add(t, zi)\n o = Relu(r)",
        "float[5,8] xi, float[6,5] zi",
        "float[6,5] o",
        "ys = Scan(a, d)",
        "e = Transpose<perm=[0,2,1]>(ys); y = MatMul(e, w3)",
        "float[4,8] w1, float[8,6] w2, float[4,6] w4, float[6,3] w3",
        (
            "num_scan_inputs = 2, scan_input_axes = [1, -1], scan_output_axes = [-3], "
            "scan_input_directions = [1, 0], scan_output_directions = [1]"
        ),
        head="a = MatMul(x, w1); c = MatMul(x, w4); d = Transpose<perm=[2,0,1]>(c);",
        groups=(6, 8),
    ),
    "scan_over_channels": scanned(
        "o = Relu(xi)",
        "float[5,2] xi",
        "float[5,2] o",
        "ys = Scan(a)",
        "t = Transpose<perm=[1,2,0]>(ys); y = MatMul(t, w3)",
        "float[4,8] w1, float[8,3] w3",
        "num_scan_inputs = 1, scan_input_axes = [2]",
        head="a = MatMul(x, w1);",
        groups=(),
    ),
    "scan_dynamic_length": scanned(
        "p = MatMul(xi, w1)\n q = MatMul(s, w2)\n r = Add(p, q)\n s2 = Tanh(r)\n o = Identity(s2)",
        "float[2,8] s, float[2,4] xi",
        "float[2,8] s2, float[2,8] o",
        "h, ys = Scan(h0, x)",
        "y = MatMul(ys, w3)",
        "float[2,8] h0, float[4,8] w1, float[8,8] w2, float[8,3] w3",
        x="float[len,2,4] x",
        out="float[len,2,3] y",
    ),
}
