"""Costs are counted at concrete sizes: those that are given, else example lengths."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.running_cost import RunningCost
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load
from tests.graph_text import net

# dynamic inputs | weights | nodes [| outputs], with the lengths of the symbols
DYNAMIC = {
    "height and width": (
        "float[n,3,h,w] x | float[8,3,3,3] w, float[6,8,3,3] v |"
        "a = Conv<strides=[2,2]>(x, w); b = Relu(a); y = Conv(b, v)",
        {"n": 2, "h": 41, "w": 33},
    ),
    "transposed": (
        "float[n,4,h,w] x | float[4,8,2,2] w, float[6,8,1,1] v |"
        "a = ConvTranspose<strides=[2,2]>(x, w); y = Conv(a, v)",
        {"n": 1, "h": 10, "w": 12},
    ),
    "sequence": (
        "float[b,s,8] x | float[8,12] q, float[8,12] k, float[8,12] v, float[12,8] o |"
        "a = MatMul(x, q); b = MatMul(x, k); c = MatMul(x, v); t = Transpose<perm=[0,2,1]>(b);"
        "d = MatMul(a, t); e = Softmax(d); f = MatMul(e, c); y = MatMul(f, o)",
        {"b": 3, "s": 17},
    ),
    "sizes computed in the graph": (
        "float[n,4,h,w] x | float[8,4,1,1] w, int64[3] r = {0,0,-1}, float[5,5] m, float[8,8] v |"
        "a = Conv(x, w); b = Reshape(a, r); t = Transpose<perm=[0,2,1]>(b); y = MatMul(t, v)",
        {"n": 1, "h": 9, "w": 7},
    ),
    "recurrent": (
        "float[s,b,5] x | float[1,24,5] w, float[1,24,6] r, float[6,3] v |"
        "a = LSTM<hidden_size=6>(x, w, r); z = Squeeze(a, i); y = MatMul(z, v)",
        {"s": 11, "b": 2},
    ),
    "einsum": (
        "float[b,s,8] x | float[8,6] w, float[6,4] v |"
        'a = Einsum<equation="bsd,dh->bsh">(x, w); y = MatMul(a, v)',
        {"b": 2, "s": 13},
    ),
    "broadcast leading axes": (
        "float[b,1,s,8] x, float[1,g,8,t] z | float[8,8] w |a = MatMul(x, w); y = MatMul(a, z)",
        {"b": 2, "s": 5, "g": 3, "t": 7},
    ),
}
DYNAMIC["recurrent"] = (
    DYNAMIC["recurrent"][0].replace("float[6,3] v", "float[6,3] v, int64[1] i = {1}"),
    DYNAMIC["recurrent"][1],
)


def fixed(text: str, lengths: dict[str, int]) -> ModelProto:
    """Return the model with its symbols replaced by lengths."""
    head, _, rest = text.partition("|")
    for symbol, length in lengths.items():
        head = head.replace(f"[{symbol},", f"[{length},").replace(f",{symbol},", f",{length},")
        head = head.replace(f",{symbol}]", f",{length}]")
    return net(f"{head}|{rest}")


def halves(analysis: Analysis) -> dict[str, list[int]]:
    """Return the first half of each group's channels."""
    return {g.name: list(range(max(g.size // 2, 1))) for g in analysis.groups}


@pytest.mark.parametrize("name", DYNAMIC)
def test_costs_of_dynamic_model_are_those_of_static_one(name: str) -> None:
    text, lengths = DYNAMIC[name]
    static = analyze(load(fixed(text, lengths)))
    dynamic = analyze(load(net(text)))
    shapes = {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in static.model.proto.graph.input
        if info.name not in static.model.weights
    }
    sized = dynamic.at(shapes)
    assert sized.cost() == static.cost()
    assert sized.node_costs() == static.node_costs()
    assert sized.counted_at.assumed == ()
    assert [g.name for g in sized.groups] == [g.name for g in dynamic.groups]
    if len(static.groups) == len(dynamic.groups):
        assert sized.cost(halves(dynamic)) == static.cost(halves(static))


def test_what_is_computed_from_weights_is_no_activation() -> None:
    text = (
        "float[2,4] x | int8[4,8] q, float scale = {0.1}, float[8,3] v | "
        "w = DequantizeLinear(q, scale); a = MatMul(x, w); t = Tanh(v); y = MatMul(a, t)"
    )
    assert analyze(load(net(text))).cost().activation_bytes == 4 * (2 * 8 + 2 * 3)


def test_dynamic_axes_take_example_lengths_and_say_so() -> None:
    text, _ = DYNAMIC["height and width"]
    analysis = analyze(load(net(text)))
    static = analyze(load(fixed(text, {"n": 1, "h": 128, "w": 128})))
    assert analysis.cost() == static.cost()
    assert analysis.counted_at.describe() == "x 1x3x128x128 (example lengths)"


def test_given_lengths_are_taken_and_minus_one_stays_an_example() -> None:
    text, _ = DYNAMIC["height and width"]
    analysis = analyze(load(net(text)), shapes={"x": [-1, 3, 40, -1]})
    static = analyze(load(fixed(text, {"n": 1, "h": 40, "w": 128})))
    assert analysis.cost() == static.cost()
    assert analysis.counted_at.describe() == "x 1x3x40x128 (example lengths)"
    assert analyze(load(net(text)), shapes={"x": [2, 3, 40, 50]}).counted_at.describe() == (
        "x 2x3x40x50"
    )


def test_lengths_that_depend_on_data_are_said() -> None:
    model = net(
        "float[4,8] x | float[8,6] w, int64[2] r = {-1,8} |"
        "a = NonZero(x); t = Transpose<perm=[1,0]>(a); c = Cast<to=1>(t);"
        "z = Reshape(c, r); y = MatMul(z, w)"
    )
    analysis = analyze(load(model))
    # 32 positions of 2 indices each are 8 rows of 8
    assert analysis.cost().macs == 8 * 8 * 6
    assert "depend on the data" in analysis.counted_at.describe()


def test_iterations_over_dynamic_axis_multiply() -> None:
    text = (
        "float[{s},4] x | float[4,6] w, float[6,3] v |"
        "y = Scan<num_scan_inputs=1, body=g2 (float[4] p) => (float[6] q) {{ q = MatMul(p, w) }}>"
        "(x)"
    )
    static = analyze(load(net(text.format(s=9))))
    dynamic = analyze(load(net(text.format(s="s")))).at({"x": [9, 4]})
    assert static.cost().macs == dynamic.cost().macs == 9 * 4 * 6


BY_DEFINITION = {
    "fused convolution": (
        "float[2,4,9,9] x | float[8,4,3,3] w |"
        'a = com.microsoft.FusedConv<activation="Relu">(x, w); y = Relu(a)',
        2 * 7 * 7 * 8 * 4 * 9,
    ),
    "fused product": (
        "float[2,5,4] x | float[6,4] w |y = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(x, w)",
        2 * 5 * 4 * 6,
    ),
    "fused gemm": (
        "float[5,4] x | float[4,6] w, float[6] b |"
        'y = com.microsoft.FusedGemm<activation="Relu">(x, w, b)',
        5 * 4 * 6,
    ),
    "weight in blocks": (
        "float[3,64] x | uint8[8,2,16] w, float[16] s |"
        "y = com.microsoft.MatMulNBits<K=64, N=8, bits=4, block_size=32>(x, w, s)",
        3 * 64 * 8,
    ),
    "quantized recurrent": (
        "float[7,2,5] x | uint8[1,5,24] w, uint8[1,6,24] r, float[1] s, uint8[1] z |"
        "y = com.microsoft.DynamicQuantizeLSTM<hidden_size=6>(x, w, r, , , , , , s, z, s, z)",
        7 * 2 * 24 * (5 + 6),
    ),
    "einsum with diagonal": (
        'float[4,4] x, float[4,5] z | | y = Einsum<equation="ii,ij->j">(x, z)',
        4 * 5,
    ),
    "grouped query attention": (
        "float[2,5,32] q, float[2,5,16] k, float[2,5,16] v, int32[2] n, int32[1] t | |"
        "y = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v, , , n, t)",
        2 * 2 * 5 * 5 * 32,
    ),
}


@pytest.mark.parametrize("name", BY_DEFINITION)
def test_operator_without_rule_is_counted_by_its_definition(name: str) -> None:
    text, macs = BY_DEFINITION[name]
    analysis = analyze(load(net(text)))
    assert analysis.cost().macs == macs
    assert sum(cost.macs for cost in analysis.node_costs()) == macs
    assert analysis.uncounted == ""
    assert 0 <= analysis.prunable_macs() <= 1


def test_unknown_operators_are_named_as_not_counted() -> None:
    model = net("float[2,4] x | | a = custom.Twice(x); b = custom.Twice(a); y = Relu(b)")
    assert analyze(load(model)).uncounted == "2 nodes of custom.Twice"


def test_sizes_do_not_change_groups() -> None:
    text, _ = DYNAMIC["height and width"]
    analysis = analyze(load(net(text)))
    other = analysis.at({"x": [1, 3, 20, 20]})
    assert other.groups == analysis.groups and other.frozen == analysis.frozen
    kept = halves(analysis)
    np.testing.assert_array_equal(other.removed(kept), analysis.removed(kept))


COUNTED = ("macs", "params", "bytes", "activation_bytes")
RUNNING = {
    **{name: text for name, (text, _) in DYNAMIC.items() if name != "broadcast leading axes"},
    "residual and grouped": (
        "float[2,4,6,6] x | float[8,4,1,1] a, float[8,4,3,3] b, float[6,8,1,1] c |"
        "p = Conv(x, a); q = Conv<group=2,pads=[1,1,1,1]>(p, b); r = Add(p, q);"
        "s = Concat<axis=1>(r, q); t, u = Split<axis=1>(s); v = Mul(t, u); y = Conv(v, c)"
    ),
    "reshaped": (
        "float[2,4,6,6] x | float[12,4,1,1] a, int64[2] m = {2,432}, float[432,5] b |"
        "p = Conv(x, a); q = Reshape(p, m); y = MatMul(q, b)"
    ),
}


@pytest.mark.parametrize("name", RUNNING)
def test_running_costs_equal_those_of_the_entire_model(name: str) -> None:
    analysis, rng = analyze(load(net(RUNNING[name]))), np.random.default_rng(0)
    running = RunningCost.of(analysis, COUNTED)
    assert running is not None and analysis.groups
    kept: dict[str, tuple[int, ...]] = {}
    for _ in range(20):
        group = analysis.groups[int(rng.integers(len(analysis.groups)))]
        count = int(rng.integers(group.size + 1))
        kept[group.name] = tuple(rng.permutation(group.size)[:count].tolist())
        running.keep(group.name, None if count == group.size else kept[group.name])
        assert running.totals() == analysis.cost(kept).as_dict()


def test_costs_that_depend_on_the_order_of_sums_have_no_running_form() -> None:
    text = "float[2,4,6,6] x | float[8,4,1,1] a, float[3,8,1,1] b, float[3,8,1,1] c |"
    nodes = "p = Conv(x, a); q = Conv(x, a); r = Conv(p, b); s = Conv(q, c); y = Add(r, s)"
    analysis = analyze(load(net(text + nodes)), untie=True)
    assert RunningCost.of(analysis, ["macs"]) is not None
    assert RunningCost.of(analysis, ["bytes"]) is None
    assert RunningCost.of(analysis, []) is None
