"""Couplings on which other pruners fail, silently or not: half of the channels are cut, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from dynamic import DYNAMIC
from graph_laws import SEEN, assert_exact, plan_of
from graph_text import net
from graphs import CASES
from patterns import PATTERNS

from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load

ALL = CASES | PATTERNS | DYNAMIC
CRASH = {
    "chunk and concat": "chunk_and_concat",
    "half-used slice": "half_used_slice",
    "half-used split": "Split_half_used",
    "pixel unshuffle": "pixel_unshuffle",
    "space to depth": "SpaceToDepth",
    "group convolution fed by a concat": "Concat_into_grouped",
    "grouped ConvTranspose": "ConvTranspose_grouped",
    "repeat_interleave": "repeat_interleave",
    "tile": "Tile",
    "matmul with a raw parameter": "MatMul_weight_left",
    "matmul with a raw batch of matrices": "MatMul_batch_broadcast",
    "einsum with a raw parameter": "Einsum",
    "einsum of heads": "Einsum_heads",
    "LSTM": "LSTM_bidirectional",
    "GRU": "GRU_bidirectional",
    "view to heads, sizes stored": "attention",
    "fused projection": "attention_fused",
    "attention of detectors": "attention_over_positions",
}
SILENT = {
    "channel shuffle, static view": "channel_shuffle",
    "channel shuffle, view with -1": "channel_shuffle_minus_one",
    "maxout by view": "maxout_by_view",
    "pad on channels in a residual": "pad_in_residual",
    "softmax selection of stacked branches": "selective_kernels",
    "softmax selection by index": "selection_by_index",
    "attention without a number of heads": "attention_minus_one",
}
WHOLE = {
    "residual chain": "Conv_residual",
    "batch normalization left in": "BatchNormalization",
    "dense block": "Concat_dense_block",
    "shuffle block": "shuffle_block",
    "feature pyramid": "feature_pyramid",
    "windows of attention": "window_partition",
    "pixel shuffle": "pixel_shuffle",
    "depthwise": "Conv_depthwise",
    "dynamic batch": "channel_shuffle_dynamic_batch",
    "dynamic sequence": "attention_dynamic_sequence",
}


@pytest.mark.parametrize("what", CRASH | SILENT | WHOLE)
def test_half_of_every_group(what: str) -> None:
    case = ALL[(CRASH | SILENT | WHOLE)[what]]
    analysis = analyze(load(net(case.text, opset=case.opset)))
    assert analysis.groups and analysis.prunable_macs() == 1
    plan = plan_of(analysis, {g.name: tuple(range(0, g.size, 2)) for g in analysis.groups})
    _, found = assert_exact(analysis, plan)
    assert found.masked_difference > SEEN and analysis.cost(plan.kept).macs < analysis.cost().macs


def test_positions_are_those_of_the_plan_in_any_order() -> None:
    """Any channels can be cut, not only a prefix, for which a wrong index map may be right."""
    for name in (*CRASH.values(), *SILENT.values()):
        analysis = analyze(load(net(ALL[name].text, opset=ALL[name].opset)))
        rng = np.random.default_rng(0)
        for _ in range(3):
            kept = {
                g.name: tuple(
                    sorted(rng.choice(g.size, max(g.size // 2, 1), replace=False).tolist())
                )
                for g in analysis.groups
            }
            assert_exact(analysis, plan_of(analysis, kept))
