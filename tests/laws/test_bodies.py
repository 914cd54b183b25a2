"""Laws of a cut with a random part of a random graph in a body that runs once."""

from __future__ import annotations

import os

import numpy as np
import pytest
from graph_laws import live_positions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper
from random_graphs import graphs
from test_laws import all_laws

from onnxprune.analysis.walk import analyze
from onnxprune.ir.inference import infer
from onnxprune.ir.io import load
from onnxprune.ir.passes.canonicalize import canonicalize

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
few = settings(
    max_examples=int(os.environ.get("ONNXPRUNE_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=_QUIET,
    derandomize=True,
)
seeds = st.integers(0, 2**16)


def wrapped(model: ModelProto, kind: str, seed: int) -> tuple[ModelProto, set[str]]:
    """Return the model with a range of its nodes in a body, and the names of the others."""
    whole = canonicalize(load(model))
    shapes, proto = infer(whole), whole.edit().proto
    rng = np.random.default_rng(seed)
    nodes = [NodeProto.FromString(n.SerializeToString()) for n in proto.graph.node]
    start = int(rng.integers(len(nodes)))
    end = int(rng.integers(start + 1, len(nodes) + 1))
    inside = nodes[start:end]
    read = {n for node in nodes[end:] for n in node.input} | {o.name for o in proto.graph.output}
    results = [o for node in inside for o in node.output if o in read]
    infos = [helper.make_tensor_value_info(o, shapes.dtype(o), shapes.shape(o)) for o in results]
    made = {o for node in inside for o in node.output}

    def body(suffix: str) -> list[NodeProto]:
        copies = [NodeProto.FromString(n.SerializeToString()) for n in inside]
        for node in copies:
            node.name += suffix
            node.input[:] = [n + suffix if n in made else n for n in node.input]
            node.output[:] = [n + suffix for n in node.output]
        return copies

    def outputs(suffix: str) -> list:
        return [
            helper.make_tensor_value_info(
                i.name + suffix,
                i.type.tensor_type.elem_type,
                [d.dim_value for d in i.type.tensor_type.shape.dim],
            )
            for i in infos
        ]

    if kind == "If":
        proto.graph.input.append(helper.make_tensor_value_info("chosen", TensorProto.BOOL, []))
        branches = {
            f"{b}_branch": helper.make_graph(body(f"_{b}"), b, [], outputs(f"_{b}"))
            for b in ("then", "else")
        }
        middle = [helper.make_node("If", ["chosen"], results, name="If", **branches)]
    else:
        middle = _once(kind, body("_in"), outputs("_in"), results)
        once, axis, clock = (
            ("once", TensorProto.INT64, [], [1]),
            ("axis0", TensorProto.INT64, [1], [0]),
            ("clock", TensorProto.FLOAT, [1], [0]),
        )
        proto.graph.initializer.extend(
            helper.make_tensor(*tensor) for tensor in (once, axis, clock)
        )
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[:start], *middle, *nodes[end:]])
    for tensor in proto.graph.initializer:
        if tensor.name in whole.weights:
            tensor.raw_data = bytes(whole.weights[tensor.name].raw())
    return proto, {n.name for n in (*nodes[:start], *nodes[end:])}


def _once(kind: str, nodes: list[NodeProto], outputs: list, results: list[str]) -> list[NodeProto]:
    """Return a Loop or Scan of one iteration that stacks outputs, and the parts of the stacks."""
    stacks = [f"{r}_stack" for r in results]
    if kind == "Loop":
        going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
        inputs = [helper.make_tensor_value_info("count", TensorProto.INT64, []), going]
        body = helper.make_graph(
            [helper.make_node("Identity", ["going"], ["goes"]), *nodes],
            "body",
            inputs,
            [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), *outputs],
        )
        node = helper.make_node("Loop", ["once", ""], stacks, name="Loop", body=body)
    else:
        body = helper.make_graph(
            nodes, "body", [helper.make_tensor_value_info("tick", TensorProto.FLOAT, [])], outputs
        )
        node = helper.make_node(
            "Scan", ["clock"], stacks, name="Scan", body=body, num_scan_inputs=1
        )
    return [
        node,
        *(
            helper.make_node("Squeeze", [s, "axis0"], [r], name=f"{r}_single")
            for s, r in zip(stacks, results, strict=False)
        ),
    ]


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_laws_in_bodies(kind: str) -> None:
    @few
    @given(graphs(), seeds)
    def laws(model: ModelProto, seed: int) -> None:
        proto, outside = wrapped(model, kind, seed)
        all_laws(proto, seed)
        plain, inside = live_positions(analyze(load(model))), live_positions(analyze(load(proto)))
        assert {p for p in plain if p[0] in outside} == {p for p in inside if p[0] in outside}

    laws()
