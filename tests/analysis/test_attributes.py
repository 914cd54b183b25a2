"""Attributes that change which channels belong together are read."""

from __future__ import annotations

import numpy as np
import pytest
from graph_laws import assert_exact, random_plan
from graph_text import net

from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load

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
