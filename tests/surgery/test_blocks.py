"""Groups that keep no channel: the branch becomes a constant, equal to the masked original."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from graph_laws import assert_exact, plan_of
from graph_text import net
from networks import mobilenet_v2, resnet18
from onnx import ModelProto

from onnxprune.analysis.blocks import removable_branches
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.errors import UsageError
from onnxprune.ir.io import Model, load
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

_IN, _BATCH = "float[2,4,6,6] x", "float[N,4,6,6] x"
_STEM, _HEAD = "float[8,4,1,1] ws, float[8] bs", "float[5,8,1,1] wh"
_3X3 = "kernel_shape=[3,3], pads=[1,1,1,1]"
_NORM = ", ".join(
    f"float[{{0}}] s{i}, float[{{0}}] t{i}, float[{{0}}] m{i}, float[{{0}}] v{i}" for i in (1, 2)
)


def residual(weights: str, nodes: str, *, batch: str = _IN, opset: int = 17) -> Analysis:
    """Return a stem that computes h, the nodes of a block from h to z, and a head."""
    return analyze(
        load(
            net(
                (
                    f"{batch} | {_STEM}, {weights}, {_HEAD} | h0 = Conv(x, ws, bs); "
                    f"h = Relu(h0); {nodes}; zr = Relu(z); y = Conv(zr, wh)"
                ),
                opset=opset,
            )
        )
    )


BLOCKS = {
    "basic": (
        "float[6,8,3,3] w1, float[6] b1, float[8,6,3,3] w2, float[8] b2",
        f"a = Conv<{_3X3}>(h, w1, b1); b = Relu(a); c = Conv<{_3X3}>(b, w2, b2); z = Add(h, c)",
    ),
    "basic without biases": (
        "float[6,8,3,3] w1, float[8,6,3,3] w2",
        f"a = Conv<{_3X3}>(h, w1); b = Relu(a); c = Conv<{_3X3}>(b, w2); z = Add(c, h)",
    ),
    "bottleneck": (
        "float[6,8,1,1] w1, float[7,6,3,3] w2, float[7] b2, float[8,7,1,1] w3, float[8] b3",
        (
            f"a0 = Conv(h, w1); a = Relu(a0); c0 = Conv<{_3X3}>(a, w2, b2); c = Relu(c0); "
            "d = Conv(c, w3, b3); z = Sum(h, d)"
        ),
    ),
    "batch normalization": (
        f"float[8,8,3,3] w1, float[8,8,3,3] w2, {_NORM.format(8)}",
        (
            f"a = Conv<{_3X3}>(h, w1); n = BatchNormalization(a, s1, t1, m1, v1); b = Relu(n); "
            f"c = Conv<{_3X3}>(b, w2); k = BatchNormalization(c, s2, t2, m2, v2); z = Add(h, k)"
        ),
    ),
    "pre-activation": (
        f"float[8,8,3,3] w1, float[8,8,3,3] w2, {_NORM.format(8)}",
        (
            f"n = BatchNormalization(h, s1, t1, m1, v1); r = Relu(n); a = Conv<{_3X3}>(r, w1); "
            f"k = BatchNormalization(a, s2, t2, m2, v2); b = Relu(k); c = Conv<{_3X3}>(b, w2); "
            "z = Add(h, c)"
        ),
    ),
    "inverted residual": (
        "float[12,8,1,1] w1, float[12,1,3,3] wd, float[12] bd, float[8,12,1,1] w2, float[8] b2",
        (
            f"a = Conv(h, w1); b = HardSwish(a); d = Conv<group=12, {_3X3}>(b, wd, bd); "
            "e = Relu(d); c = Conv(e, w2, b2); z = Add(h, c)"
        ),
    ),
    "squeeze and excitation": (
        (
            "float[12,8,1,1] w1, float[3,12,1,1] w3, float[3] b3, float[12,3,1,1] w4, "
            "float[12] b4, float[8,12,1,1] w2, float[8] b2"
        ),
        (
            "a = Conv(h, w1); b = Relu(a); p = GlobalAveragePool(b); q = Conv(p, w3, b3); "
            "r = Relu(q); s = Conv(r, w4, b4); t = Sigmoid(s); u = Mul(b, t); "
            "c = Conv(u, w2, b2); z = Add(h, c)"
        ),
    ),
    "scaled": (
        "float[6,8,1,1] w1, float[8,6,1,1] w2, float[8] b2, float[1,8,1,1] g",
        "a = Conv(h, w1); b = Relu(a); c = Conv(b, w2, b2); k = Mul(c, g); z = Add(h, k)",
    ),
    "transposed": (
        "float[6,8,1,1] w1, float[6,8,1,1] w2, float[8] b2",
        "a = Conv(h, w1); b = Relu(a); c = ConvTranspose(b, w2, b2); z = Add(h, c)",
    ),
    "channels last": (
        "float[8,16] w1, float[16] b1, float[16,8] w2, float[8] b2, float[8] g",
        (
            "l = Transpose<perm=[0,2,3,1]>(h); a = MatMul(l, w1); b = Add(a, b1); e = Erf(b); "
            "c = MatMul(e, w2); d = Add(c, b2); k = Mul(d, g); f = Transpose<perm=[0,3,1,2]>(k); "
            "z = Add(h, f)"
        ),
    ),
}
WITH = {
    "bottleneck": 2,
    "squeeze and excitation": 2,
}  # number of groups of a block, if not 1


def gone(analysis: Analysis, lead: str) -> Plan:
    return plan_of(analysis, dict.fromkeys(removable_branches(analysis)[lead], ()))


def largest(analysis: Analysis) -> str:
    """Return the first group of the branch with most groups."""
    blocks = removable_branches(analysis)
    return max(blocks, key=lambda lead: len(blocks[lead]))


def convolutions(model: Model) -> int:
    return sum(
        n.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm") for n in model.proto.graph.node
    )


@pytest.mark.parametrize("batch", [_IN, _BATCH], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_branch_is_removed(name: str, batch: str) -> None:
    analysis = residual(*BLOCKS[name], batch=batch)
    lead = largest(analysis)
    assert len(removable_branches(analysis)[lead]) == WITH.get(name, 1)
    plan = gone(analysis, lead)
    pruned, found = assert_exact(analysis, plan)
    assert found.masked_difference > 1e-3
    assert convolutions(pruned) == 2
    assert [n.op_type for n in pruned.proto.graph.node] == [
        "Conv",
        "Relu",
        _last(analysis),
        "Relu",
        "Conv",
    ]
    assert analysis.cost(plan.kept).macs == sum(
        c.macs for c in analysis.node_costs() if c.node in ("h0", "y")
    )


def _last(analysis: Analysis) -> str:
    return next(n.op_type for n in analysis.model.proto.graph.node if n.output[0] == "z")


@pytest.mark.parametrize("name", BLOCKS)
def test_with_other_groups_cut_as_well(name: str) -> None:
    """The tensor that the constant is added to can lose channels in the same cut."""
    analysis = residual(*BLOCKS[name])
    kept = dict(gone(analysis, largest(analysis)).kept)
    kept |= {g.name: (0, 2, 5) for g in analysis.groups if g.name not in kept}
    plan = plan_of(analysis, kept)
    assert Plan.from_json(plan.to_json()) == plan
    pruned, _ = assert_exact(analysis, plan)
    assert pruned.weights["wh"].shape == (5, 3, 1, 1)


def test_a_gate_is_removed() -> None:
    """Without its squeezed channels, a gate becomes a constant factor."""
    analysis = residual(*BLOCKS["squeeze and excitation"])
    lead = next(name for name, block in removable_branches(analysis).items() if block == ("q",))
    pruned, found = assert_exact(analysis, gone(analysis, lead))
    assert found.masked_difference > 1e-3
    assert "GlobalAveragePool" not in {n.op_type for n in pruned.proto.graph.node}
    assert pruned.weights["t"].shape == (1, 12, 1, 1)


def test_transformer_branches_are_removed() -> None:
    """Attention and the MLP, each after a normalization, can be removed."""
    weights = (
        "float[8] s1, float[8] t1, float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8,8] wo, "
        "float[8] bo, float[8] s2, float[8] t2, float[8,16] w1, float[16] b1, float[16,8] w2, "
        "float[8] b2"
    )
    constants = "int64[4] heads = {0, 5, 2, 4}, int64[3] flat = {0, 5, 8}"
    nodes = (
        "n = LayerNormalization(x, s1, t1); q0 = MatMul(n, wq); k0 = MatMul(n, wk); "
        "v0 = MatMul(n, wv); q1 = Reshape(q0, heads); k1 = Reshape(k0, heads); "
        "v1 = Reshape(v0, heads);"
        "q = Transpose<perm=[0,2,1,3]>(q1); k = Transpose<perm=[0,2,3,1]>(k1); "
        "v = Transpose<perm=[0,2,1,3]>(v1); l = MatMul(q, k); p = Softmax(l); "
        "o0 = MatMul(p, v);"
        "o1 = Transpose<perm=[0,2,1,3]>(o0); o2 = Reshape(o1, flat); o3 = MatMul(o2, wo); "
        "o = Add(o3, bo); z = Add(x, o);"
        "m = LayerNormalization(z, s2, t2); a = MatMul(m, w1); b = Add(a, b1); e = Gelu(b); "
        "c = MatMul(e, w2); d = Add(c, b2); y = Add(z, d)"
    )
    analysis = analyze(load(net(f"float[2,5,8] x | {weights}, {constants} | {nodes}", opset=20)))
    blocks = removable_branches(analysis)
    assert sorted(map(len, blocks.values())) == [1, 3]
    for lead in blocks:
        pruned, found = assert_exact(analysis, gone(analysis, lead))
        assert found.masked_difference > 1e-3
    pruned, _ = assert_exact(
        analysis, plan_of(analysis, {g: () for block in blocks.values() for g in block})
    )
    assert [n.op_type for n in pruned.proto.graph.node] == ["Add", "Add"]


@pytest.mark.parametrize("network", [resnet18, mobilenet_v2])
def test_whole_networks(network: Callable[[int], ModelProto]) -> None:
    """Every second branch of a network can be removed at once, and all of them."""
    analysis = analyze(load(network(32)))
    blocks = removable_branches(analysis)
    assert len(blocks) == {"resnet18": 8, "mobilenet_v2": 10}[network.__name__]
    for leads in (list(blocks)[::2], list(blocks)):
        plan = plan_of(analysis, {g: () for lead in leads for g in blocks[lead]})
        pruned, _ = assert_exact(analysis, plan)
        assert convolutions(analysis.model) - convolutions(pruned) == (
            2 if network is resnet18 else 3
        ) * len(leads)


def test_one_of_two_summed_branches_is_removed() -> None:
    """Of two branches whose sum is a tensor, only one can be removed."""
    weights = "float[6,8,1,1] w1, float[8,6,1,1] w2, float[6,8,1,1] w3, float[8,6,1,1] w4"
    analysis = residual(
        weights,
        (
            "a = Conv(h, w1); b = Relu(a); c = Conv(b, w2); d = Conv(h, w3); e = Relu(d); "
            "f = Conv(e, w4); z = Add(c, f)"
        ),
    )
    assert removable_branches(analysis) == {"a": ("a",)}
    assert_exact(analysis, plan_of(analysis, {"d": ()}))
    with pytest.raises(UsageError, match="would be a constant"):
        cut(analysis, plan_of(analysis, {"a": (), "d": ()}))


REFUSED = {
    "a chain": (
        "float[6,8,1,1] w1, float[8,6,1,1] w2",
        "a = Conv(h, w1); b = Relu(a); z = Conv(b, w2)",
        {"a": ()},
        "'zr' would be a constant, and node 'y'",
    ),
    "a bottleneck's first group alone": (
        *BLOCKS["bottleneck"],
        {"a0": ()},
        (
            "'c' would be a constant, and node 'd' .Conv. consumes it.*all its groups are "
            "removed together"
        ),
    ),
    "a stream": (*BLOCKS["basic"], {"h0": ()}, "'zr' would have no channel, and node 'y'"),
    "a shortcut that is wider": (
        "float[6,8,1,1] w1, float[8,6,1,1] w2",
        "a = Conv(h, w1); b = Relu(a); c = Conv(b, w2); p = GlobalAveragePool(h); z = Add(p, c)",
        {"a": ()},
        "'c' would be a constant, and node 'z' .Add.",
    ),
    "a mean over channels": (
        "float[6,8,1,1] w1",
        "a = Conv(h, w1); p = ReduceMean<axes=[1]>(a); z = Mul(h, p)",
        {"a": ()},
        "'a' would have no channel, and node 'p' .ReduceMean.",
    ),
    "a concatenation": (
        "float[6,8,1,1] w1, float[8,14,1,1] w2",
        "a = Conv(h, w1); j = Concat<axis=1>(h, a); z = Conv(j, w2)",
        {"a": ()},
        "'a' would have no channel, and node 'j' .Concat.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_branches_are_refused(name: str) -> None:
    weights, nodes, kept, match = REFUSED[name]
    analysis = residual(weights, nodes)
    with pytest.raises(UsageError, match=match):
        cut(analysis, plan_of(analysis, kept))
    assert not set(kept) & set(removable_branches(analysis))


def test_a_branch_whose_channels_are_padded_by_a_constant_stays() -> None:
    """The shortcut of a ResNet that appends zeros: they cannot be removed alone."""
    text = (
        f"{_IN} | float[8,4,1,1] ws, float[12,8,3,3] w1, float[2,4,6,6] zeros, float[5,12,1,1] wh |"
        f" h = Conv(x, ws); a = Conv<{_3X3}>(h, w1); b = Sigmoid(a); "
        "c = Concat<axis=1>(h, zeros); z = Add(b, c); y = Conv(z, wh)"
    )
    analysis = analyze(load(net(text)))
    padded = next(g for g in analysis.groups if any(s.tensor == "zeros" for s in g.sites))
    assert padded.name not in removable_branches(analysis)
    with pytest.raises(UsageError, match="keep at least one"):
        cut(analysis, plan_of(analysis, {padded.name: ()}))
    assert_exact(analysis, plan_of(analysis, {padded.name: (0, 2)}))
