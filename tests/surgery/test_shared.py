"""One initializer with two consumers, of which only one is cut."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
from onnxprune.types import Plan

GRAPH = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2,3] x, float[2,8] z) => (float[2,4] a, float[2,4] b) {{
  h = MatMul(x, first)
  {nodes}
}}"""
READERS = ["a = MatMul(h, shared)", "b = MatMul(z, shared)"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_reader_that_stays_whole_keeps_the_whole_initializer(order: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(GRAPH.format(nodes="\n  ".join(READERS[i] for i in order)))
    for name, shape in (("first", (3, 8)), ("shared", (8, 4))):
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    analysis = analyze(load(proto), untie=True)
    (group,) = analysis.groups
    plan = Plan(analysis.digest, {group.name: (1, 4, 6)}, {group.name: 8}, {}, analysis.options)
    pruned = cut(analysis, plan)
    assert sorted(w.shape for w in pruned.weights.values()) == [(3, 3), (3, 4), (8, 4)]
    assert verify(analysis, plan, pruned).ok
