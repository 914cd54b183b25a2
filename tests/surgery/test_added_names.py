"""Names of the nodes and tensors that a cut or a mask adds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import onnxprune
from onnxprune.ir.runtime import Session
from onnxprune.surgery.masking import masked
from tests.graph_text import net

# the channels of a are merged into the rows of p; the batch is computed from the number of rows
SIZES = (
    "float[N,4,5] x | float[8,4,1] w, int64[2] rows = {{-1, 5}}, float[5,5] m, int64[1] first = "
    "{{0}}, int64[2] tail = {{8, 5}}, int64[1] eight = {{8}}, float[3,8,1] q | "
    "a = Conv(x, w); r = Reshape(a, rows); s = Shape(r); {0} = Gather(s, first); "
    "{1} = Div({0}, eight); t = Concat<axis=0>({1}, tail); p = MatMul(r, m); "
    "z = Reshape(p, t); u = Relu(z); y = Conv(u, q)"
)


@pytest.mark.parametrize("taken", [("g", "h"), ("s_kept", "s_share"), ("z_sizes_merged", "s_1")])
def test_names_that_a_graph_uses_are_not_given_again(taken: tuple[str, str]) -> None:
    model = net(SIZES.format(*taken))
    for node in model.graph.node:
        node.name = node.output[0]  # as exporters of other frameworks do
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)}
    analysis = onnxprune.analyze(onnxprune.load(model.SerializeToString()))
    for _ in range(2):  # a cut model is cut again
        plan = analysis.plan({g.name: range(1, g.size) for g in analysis.groups})
        smaller = onnxprune.cut(analysis, plan)
        for copy in (smaller, masked(analysis, plan)):
            nodes = Counter(node.name for node in copy.proto.graph.node)
            assert set(nodes.values()) == {1}
            Session(copy).run(feeds)
        assert onnxprune.verify(analysis, plan, smaller, feeds).ok
        analysis = onnxprune.analyze(smaller)
