"""Weights that several nodes use are cut alike, stored once, and untied on request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_laws import assert_exact, random_plan
from graph_text import net

from onnxprune.analysis import copies
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load
from onnxprune.run.pipeline import optimize
from onnxprune.surgery.cut import cut

SIAMESE = """float[2,4,6,6] x, float[2,4,6,6] z
| float[8,4,3,3] w1, float[8,4,3,3] w2, float[6,8,3,3] w3, float[5,6,1,1] w4
| a = Conv<pads=[1,1,1,1]>(x, w1); b = Conv<pads=[1,1,1,1]>(z, w2);
c = Conv<pads=[1,1,1,1]>(a, w3); d = Conv<pads=[1,1,1,1]>(b, w3);
e = Conv(c, w4); f = Conv(d, w4); y = Sub(e, f)"""
PYRAMID = """float[2,4,8,8] x
| float[8,4,3,3] w1, float[8,8,3,3] w2, float[6,8,3,3] h1, float[6] b1, float[5,6,1,1] h2
| p = Conv<pads=[1,1,1,1]>(x, w1); q = Conv<pads=[1,1,1,1],strides=[2,2]>(p, w2);
a = Conv<pads=[1,1,1,1]>(p, h1, b1); c = Relu(a); f = Conv(c, h2);
d = Conv<pads=[1,1,1,1]>(q, h1, b1); e = Relu(d); g = Conv(e, h2);
m = GlobalAveragePool(f); n = GlobalAveragePool(g); y = Concat<axis=1>(m, n)"""
TIED = """int64[2,6] i
| float[9,8] t, float[8,12] w1, float[12,8] w2
| x = Gather<axis=0>(t, i); a = MatMul(x, w1); r = Relu(a); b = MatMul(r, w2); c = Add(x, b);
u = Transpose<perm=[1,0]>(t); y = MatMul(c, u)"""
SEQUENCE = """float[2,4] x
| float[4,8] w1, float[8,8] w2, float[8,5] w3
| a = MatMul(x, w1); b = MatMul(a, w2); r = Relu(b); c = MatMul(r, w2); y = MatMul(c, w3)"""
CONSTANTS = """float[2,6,4] x
| float[4,8] w1, float[8,8] w2, float[6,8] p, float[8,5] w3
| a = MatMul(x, w1); b = Add(a, p); r = Relu(b); c = MatMul(r, w2); d = Add(c, p);
y = MatMul(d, w3)"""
SHARED = {"siamese": SIAMESE, "pyramid": PYRAMID, "tied": TIED, "sequence": SEQUENCE}
GROUPS = {"siamese": [8, 6], "pyramid": [8, 6], "tied": [8, 12], "sequence": [8]}


def _stored(analysis: Analysis, seed: int) -> tuple[int, int]:
    """Return the number of weights of rank 2 and more before and after a random cut."""
    plan = random_plan(analysis, np.random.default_rng(seed))
    pruned, _ = assert_exact(analysis, plan)
    counts = [
        sum(len(w.shape) > 1 for w in model.weights.values()) for model in (analysis.model, pruned)
    ]
    return counts[0], counts[1]


@pytest.mark.parametrize("name", SHARED)
def test_uses_are_cut_alike_and_stored_once(name: str) -> None:
    analysis = analyze(load(net(SHARED[name])))
    assert sorted(g.size for g in analysis.groups) == sorted(GROUPS[name])
    for seed in range(3):
        before, after = _stored(analysis, seed)
        assert before == after


@pytest.mark.parametrize("name", ["siamese", "pyramid"])
def test_untied_uses_are_cut_apart(name: str) -> None:
    analysis = analyze(load(net(SHARED[name])), untie=True)
    assert len(analysis.groups) > len(GROUPS[name])
    before, after = _stored(analysis, 0)
    assert after > before
    assert analysis.options["untie"] is True


def test_constants_of_formulas_are_not_tied() -> None:
    analysis = analyze(load(net(CONSTANTS)))
    assert sorted(g.size for g in analysis.groups) == [8, 8]


def test_reported_params_are_those_of_the_file() -> None:
    analysis = analyze(load(net(PYRAMID)))
    plan = random_plan(analysis, np.random.default_rng(1))
    pruned = cut(analysis, plan)
    stored = sum(int(np.prod(w.shape)) for w in pruned.weights.values())
    assert analysis.cost(plan.kept).params == stored


HEADS = """float[2,4,8,8] x
| float[8,4,3,3] w1, float[8,8,3,3] w2, float[8,8,3,3] w3, float[6,8,3,3] h1, float[6] b1,
float[5,6,1,1] h2
| p = Conv<pads=[1,1,1,1]>(x, w1); q = Conv<pads=[1,1,1,1],strides=[2,2]>(p, w2);
s = Conv<pads=[1,1,1,1],strides=[2,2]>(q, w3); a = Conv<pads=[1,1,1,1]>(p, h1, b1); b = Relu(a);
c = Conv(b, h2); d = Conv<pads=[1,1,1,1]>(q, h1, b1); e = Relu(d); f = Conv(e, h2);
g = Conv<pads=[1,1,1,1]>(s, h1, b1); h = Relu(g); i = Conv(h, h2); j = GlobalAveragePool(c);
k = GlobalAveragePool(f); l = GlobalAveragePool(i); y = Concat<axis=1>(j, k, l)"""
CHAIN = """float[2,4,6,6] x
| float[8,4,1,1] w1, float[8,8,3,3] w2, float[5,8,1,1] w3
| a = Conv(x, w1); b = Conv<pads=[1,1,1,1]>(a, w2); c = Relu(b); d = Conv<pads=[1,1,1,1]>(c, w2);
e = Relu(d); f = Conv<pads=[1,1,1,1]>(e, w2); g = Relu(f); y = Conv(g, w3)"""


def copies_of(text: str) -> onnx.ModelProto:
    """Return a graph with a copy of every initializer per use, as exporters write it that trace."""
    proto = net(text)
    seen: set[str] = set()
    tensors = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        for slot, name in enumerate(node.input):
            if name in seen:
                copy = proto.graph.initializer.add()
                copy.CopyFrom(tensors[name])
                copy.name = node.input[slot] = f"{name}_{node.output[0]}"
            elif name in tensors:
                seen.add(name)
    return proto


def test_search_for_copies_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "MOST_TRIED", 10)
    analysis = analyze(load(copies_of(SIAMESE)))
    assert not analysis.copies and analysis.groups


@pytest.mark.parametrize("text", [SIAMESE, PYRAMID, HEADS], ids=["siamese", "pyramid", "heads"])
def test_copies_of_equal_bytes_are_one_weight(text: str) -> None:
    shared, copies = analyze(load(net(text))), analyze(load(copies_of(text)))
    assert [g.size for g in copies.groups] == [g.size for g in shared.groups]
    assert copies.prunable_macs() == shared.prunable_macs()
    layers = {name for name, w in shared.model.weights.items() if len(w.shape) > 1}
    assert {name for name, w in copies.model.weights.items() if len(w.shape) > 1} == layers
    assert copies.copies and not shared.copies
    before, after = _stored(copies, 0)
    assert before == after == len(layers)
    untied = analyze(load(copies_of(text)), untie=True)
    assert len(untied.groups) > len(copies.groups) and not untied.copies


def test_chain_of_equal_layers_keeps_its_copies_apart() -> None:
    analysis = analyze(load(copies_of(CHAIN)))
    assert not analysis.copies
    assert [g.size for g in analysis.groups] == [8, 8, 8, 8]
    assert analysis.prunable_macs() == 1.0
    assert_exact(analysis, random_plan(analysis, np.random.default_rng(0)))


def test_copies_of_which_one_is_frozen_stay_apart() -> None:
    """Coupling it with a layer that is free would freeze that layer as well."""
    proto = copies_of(SIAMESE)
    analysis = analyze(load(proto), freeze=["c"])
    assert "w3" not in analysis.copies
    assert len(analysis.groups) > len(analyze(load(proto)).groups)


@pytest.mark.parametrize("fill", ["ones", "channels"])
def test_equal_constants_are_not_copies(fill: str) -> None:
    """Fills and kernels that repeat per channel are equal because a formula made them."""
    proto = copies_of(SIAMESE)
    for tensor in proto.graph.initializer:
        values = np.ones(tuple(tensor.dims), np.float32)
        if fill == "channels":
            values *= np.arange(values[0, 0].size, dtype=np.float32).reshape(values.shape[2:])
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    assert not analyze(load(proto)).copies


def test_copies_are_refitted_as_one_weight(tmp_path: Path) -> None:
    """The artifact stores them once, and the run names them."""
    proto = copies_of(HEADS.replace("float[2,", "float[n,"))
    data = tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((12, 4, 8, 8), np.float32))
    result = optimize(load(proto), data=str(data), target="macs=70%", round_to=1, engine=())
    layers = [w for w in result.model.weights.values() if len(w.shape) > 1]
    assert len(layers) == 5
    assert any("h1_d" in warning for warning in result.report.warnings)


STATES = {
    "filled": "s = Concat<axis=0>(one, n1, hid); z = ConstantOfShape(s)",
    "slices": "s = Concat<axis=0>(two, n1, hid); f = ConstantOfShape(s); z = Slice(f, i0, one, i0)",
    "initializer": "z = Identity(zeros)",
}


@pytest.mark.parametrize("form", STATES)
def test_layers_with_common_initial_states_are_cut_apart(form: str) -> None:
    """A tensor of zeros that all layers start from couples none of their units."""
    batch = "1" if form == "initializer" else "N"
    text = (
        f"float[5,{batch},4] x | float[1,24,4] w1, float[1,24,6] r1, float[1,24,6] w2, "
        "float[1,24,6] r2, float[1,48] b = {" + ",".join(["0"] * 48) + "}, float[6,3] w3, "
        "int64 first = {1}, int64[1] i0 = {0}, int64[1] one = {1}, int64[1] two = {2}, "
        "int64[1] hid = {6}, float[1,1,6] zeros = {0,0,0,0,0,0} | "
        "n = Shape(x); g = Gather<axis=0>(n, first); n1 = Unsqueeze(g, i0); "
        f"{STATES[form]}; o, h, c = LSTM<hidden_size=6>(x, w1, r1, b, , z, z); "
        "q = Squeeze(o, one); p, h2, c2 = LSTM<hidden_size=6>(q, w2, r2, b, , z, z); "
        "t = Squeeze(p, one); y = MatMul(t, w3)"
    )
    analysis = analyze(load(net(text)))
    assert [g.size for g in analysis.groups] == [6, 6]
    plan = analysis.plan({analysis.groups[0].name: [0, 2, 3], analysis.groups[1].name: [1, 4]})
    pruned, _ = assert_exact(analysis, plan)
    assert pruned.weights["w3"].shape == (2, 3)
