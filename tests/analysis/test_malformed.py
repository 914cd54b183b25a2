"""Graphs with random changes of attributes and operands, which onnx may not accept."""

from __future__ import annotations

import numpy as np
from bodies import BODIES
from dynamic import DYNAMIC
from graph_laws import random_plan
from graph_text import net
from graphs import CASES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from indexed import INDEXED
from onnx import AttributeProto, ModelProto
from patterns import PATTERNS

from onnxprune.analysis.walk import analyze
from onnxprune.errors import OnnxpruneError
from onnxprune.ir.io import load, to_bytes
from onnxprune.ir.nodes import nested
from onnxprune.surgery.cut import cut

ALL = CASES | PATTERNS | DYNAMIC | INDEXED | BODIES
EXAMPLES = 300


def change(model: ModelProto, draw: st.DataObject) -> None:
    """Make one random change."""
    graphs = list(nested(model.graph))
    nodes = [n for g in graphs for n in g.node]
    node = nodes[draw.draw(st.integers(0, len(nodes) - 1))]
    what = draw.draw(
        st.sampled_from(
            [
                "attribute",
                "attribute",
                "drop input",
                "swap inputs",
                "other input",
                "op",
                "drop output",
                "dims",
                "initializer",
                "domain",
                "drop body input",
                "drop body output",
                "move body",
            ]
        )
    )
    names = (
        [i.name for i in model.graph.initializer]
        + [n.output[0] for n in nodes if n.output]
        + ["x", ""]
    )
    if what == "attribute" and node.attribute:
        attribute = node.attribute[draw.draw(st.integers(0, len(node.attribute) - 1))]
        number = draw.draw(st.sampled_from([-9, -1, 0, 1, 2, 3, 7, 2**40]))
        if attribute.type == AttributeProto.INT:
            attribute.i = number
        elif attribute.ints:
            attribute.ints[draw.draw(st.integers(0, len(attribute.ints) - 1))] = number
        else:
            node.attribute.remove(attribute)
    elif what == "drop input" and node.input:
        del node.input[draw.draw(st.integers(0, len(node.input) - 1))]
    elif what == "swap inputs":
        node.input[:] = list(node.input)[::-1]
    elif what == "other input" and node.input:
        node.input[draw.draw(st.integers(0, len(node.input) - 1))] = draw.draw(
            st.sampled_from(names)
        )
    elif what == "op":
        node.op_type = draw.draw(
            st.sampled_from(
                [n.op_type for n in nodes] + ["Concat", "LSTM", "Reshape", "Gemm", "Split", "TopK"]
            )
        )
    elif what == "drop output" and node.output:
        node.output[draw.draw(st.integers(0, len(node.output) - 1))] = ""
    elif what == "dims" and model.graph.input[0].type.tensor_type.shape.dim:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = draw.draw(
            st.sampled_from([-1, 0, 1, 10**9])
        )
    elif what == "initializer" and model.graph.initializer:
        tensor = model.graph.initializer[
            draw.draw(st.integers(0, len(model.graph.initializer) - 1))
        ]
        if len(tensor.dims) > 1:
            tensor.dims[:] = list(tensor.dims)[::-1]
    elif what.startswith("drop body"):
        body = draw.draw(st.sampled_from(graphs))
        ports = body.input if what.endswith("input") else body.output
        if body is not model.graph and ports:
            del ports[draw.draw(st.integers(0, len(ports) - 1))]
    elif what == "move body" and len(graphs) > 1:
        graphs[-1].CopyFrom(draw.draw(st.sampled_from(graphs[1:])))
    elif what == "domain":
        node.domain = draw.draw(st.sampled_from(["com.microsoft", "custom", "ai.onnx.ml"]))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(ALL)), st.data())
def test_changed_graphs_are_analyzed_or_rejected(name: str, data: st.DataObject) -> None:
    model = net(ALL[name].text, opset=ALL[name].opset)
    for _ in range(data.draw(st.integers(1, 3))):
        change(model, data)
    try:
        analysis = analyze(load(model))
        analysis.cost()
        to_bytes(cut(analysis, random_plan(analysis, np.random.default_rng(0))))
    except OnnxpruneError as problem:
        assert problem.message
