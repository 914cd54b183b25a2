"""Attributes that change which channels belong together are read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from attribute_values import VALUES
from graph_laws import assert_exact, plan_of, random_plan
from graph_text import net
from onnx.reference import ReferenceEvaluator
from product_values import BATCH_FIRST, EINSUMS, RECURRENT, WINDOWS

from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load, to_bytes
from onnxprune.ir.runtime import example_feeds
from onnxprune.surgery.cut import cut
from onnxprune.surgery.masking import masked

SQUEEZE = """float[1,4,6,1] x | float[3,4,1,1] w1, float[5,3] w2
| a = Conv(x, w1); b = Squeeze(a); y = MatMul(w2, b)"""


@pytest.mark.parametrize("name", VALUES)
def test_cut_is_exact_for_every_value(name: str) -> None:
    case = VALUES[name]
    analysis = analyze(load(net(case.text, opset=case.opset)))
    assert tuple(sorted(g.size for g in analysis.groups)) == case.groups, analysis.frozen
    if analysis.groups:
        for seed in range(2):
            assert_exact(analysis, random_plan(analysis, np.random.default_rng(seed)))


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("kept", [(1,), (0, 2)])
def test_squeeze_without_axes_keeps_a_channel_axis_of_one(
    opset: int, kept: tuple[int, ...]
) -> None:
    """The axes of the original are listed only if another axis would be dropped."""
    analysis = analyze(load(net(SQUEEZE, opset=opset)))
    (group,) = analysis.groups
    pruned, _ = assert_exact(analysis, plan_of(analysis, {group.name: kept}))
    squeeze = next(n for n in pruned.proto.graph.node if n.op_type == "Squeeze")
    listed = len(squeeze.input) > 1 or bool(squeeze.attribute)
    assert listed == (len(kept) == 1)


def test_squeeze_of_nothing_keeps_a_channel_axis_of_one() -> None:
    """An empty list of axes would mean the same as none."""
    text = SQUEEZE.replace("[1,4,6,1]", "[2,4,6]").replace("[3,4,1,1]", "[3,4,1]")
    analysis = analyze(load(net(text)))
    (group,) = analysis.groups
    pruned, _ = assert_exact(analysis, plan_of(analysis, {group.name: (2,)}))
    assert [n.op_type for n in pruned.proto.graph.node] == ["Conv", "Identity", "MatMul"]


def test_channels_last_of_quantized_convolution() -> None:
    """Its input channels are on the last axis, those of its weight on the second."""
    text = """float[2,4,4,4] x | float[4,4] w0, int8[4,4,1,1] k, float s = {0.05}, int8 z = {3},
    int8 u = {0} | a = MatMul(x, w0); q = QuantizeLinear(a, s, z);
    c = com.microsoft.QLinearConv<channels_last=1>(q, s, z, k, s, u, s, z);
    y = DequantizeLinear(c, s, z)"""
    analysis = analyze(load(net(text.replace("\n", " "))))
    (group,) = analysis.groups
    sites = {(s.tensor, s.axis) for s in group.sites}
    assert sites == {("w0", 1), ("k", 1)}
    _, found = assert_exact(analysis, plan_of(analysis, {group.name: (0, 2)}))
    assert found.masked_difference > 1e-2


PRODUCTS = EINSUMS | RECURRENT
REFERENCE_ONLY = BATCH_FIRST | WINDOWS


@pytest.mark.parametrize("name", PRODUCTS)
def test_cut_of_product_is_exact_for_every_value(name: str) -> None:
    case = PRODUCTS[name]
    analysis = analyze(load(net(case.text, opset=case.opset)))
    assert tuple(sorted(g.size for g in analysis.groups)) == case.groups, analysis.frozen
    assert_exact(analysis, random_plan(analysis, np.random.default_rng(0)))


@pytest.mark.parametrize("name", REFERENCE_ONLY)
def test_cut_is_exact_by_reference(name: str) -> None:
    case = REFERENCE_ONLY[name]
    analysis = analyze(load(net(case.text, opset=case.opset)))
    assert tuple(sorted(g.size for g in analysis.groups)) == case.groups, analysis.frozen
    plan = random_plan(analysis, np.random.default_rng(0))
    feeds = example_feeds(analysis.model)
    expected, actual = (
        ReferenceEvaluator(onnx.load_from_string(to_bytes(model))).run(None, feeds)[0]
        for model in (masked(analysis, plan), cut(analysis, plan))
    )
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


DEFORM = """float[1,4,6,6] x, float[1,{offsets},4,4] o
| float[8,4,1,1] w1, float[6,{inputs},3,3] w2, float[6] b2, float[5,6,1,1] w3
| a = Conv(x, w1); b = DeformConv<offset_group={k},group={g}>(a, w2, o, b2); y = Conv(b, w3)"""


@pytest.mark.parametrize("offset_groups", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_offset_groups_of_deform_conv(offset_groups: int, groups: int) -> None:
    text = DEFORM.format(offsets=18 * offset_groups, inputs=8 // groups, k=offset_groups, g=groups)
    analysis = analyze(load(net(text, opset=19)))
    assert analysis.groups
    for seed in range(3):
        assert_exact(analysis, random_plan(analysis, np.random.default_rng(seed)))
    if groups == 1:
        assert analysis.prunable_macs() == 1.0


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_mode_of_space_to_depth(mode: str) -> None:
    """Opset 28 gives SpaceToDepth the modes of DepthToSpace."""
    text = f"""float[1,3,8,8] x | float[6,3,1,1] w1, float[5,24,1,1] w2
    | a = Conv(x, w1); b = SpaceToDepth<blocksize=2,mode="{mode}">(a); y = Conv(b, w2)"""
    analysis = analyze(load(net(text)))
    plan = random_plan(analysis, np.random.default_rng(0))
    (group,) = analysis.groups
    assert group.size == 6
    sites = [s for s in group.sites if s.tensor == "w2"]
    assert sites
    first = analysis.members(group.name)
    positions = next(m.positions for m in first if m.site.tensor == "w2")
    channels = next(m.channels for m in first if m.site.tensor == "w2")
    expected = np.arange(24) % 6 if mode == "DCR" else np.arange(24) // 4
    np.testing.assert_array_equal(channels[np.argsort(positions, kind="stable")], expected)
    assert plan.kept
