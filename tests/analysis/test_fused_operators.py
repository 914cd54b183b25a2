"""What onnxruntime's optimizer and quantizers write is as prunable as before."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cases import no_kernel
from contrib_ops import OPERATORS
from graph_laws import random_plan
from graph_text import net
from onnx.reference import ReferenceEvaluator

from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.runtime import example_feeds
from onnxprune.surgery.cut import cut
from onnxprune.surgery.masking import masked


@pytest.mark.parametrize("name", no_kernel.CASES)
def test_cut_equals_masked_without_kernel(name: str) -> None:
    """Operators without a CPU kernel are evaluated by numpy."""
    case = no_kernel.CASES[name]
    analysis = analyze(load(net(case.text, opset=case.opset)))
    assert tuple(sorted(g.size for g in analysis.groups)) == case.groups, analysis.frozen
    assert analysis.prunable_macs() > 0
    feeds = example_feeds(analysis.model)

    def run(model: Model) -> np.ndarray:
        proto = onnx.load_from_string(to_bytes(model))
        return ReferenceEvaluator(proto, new_ops=OPERATORS).run(None, feeds)[0]

    original = run(analysis.model)
    for seed in range(3):
        plan = random_plan(analysis, np.random.default_rng(seed))
        pruned, expected = run(cut(analysis, plan)), run(masked(analysis, plan))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(pruned, expected, rtol=1e-5, atol=1e-5 * scale)
        assert np.abs(expected - original).max() > 1e-2 * scale
