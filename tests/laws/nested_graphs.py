"""Graphs with a part of their nodes in the branches of an If or the body of a Loop or Scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxprune.ir.inference import infer
from onnxprune.ir.io import load
from onnxprune.ir.passes.canonicalize import canonicalize

KINDS = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class _Part:
    """A stretch of nodes that moves into a body.

    Attributes
    ----------
    nodes
        The nodes, in order.
    results
        Type and shape of the tensors that nodes after the stretch, or the graph's outputs, read.
    """

    nodes: list[NodeProto]
    results: list[ValueInfoProto]

    def renamed_nodes(self, suffix: str) -> list[NodeProto]:
        """Return copies of the nodes whose names and tensors end with the suffix."""
        inner = {o for node in self.nodes for o in node.output}
        copies = [_copy(n) for n in self.nodes]
        for node in copies:
            node.name += suffix
            node.input[:] = [n + suffix if n in inner else n for n in node.input]
            node.output[:] = [n + suffix for n in node.output]
        return copies

    def renamed_results(self, suffix: str) -> list[ValueInfoProto]:
        """Return the results under names that end with the suffix."""
        copies = []
        for info in self.results:
            copy = ValueInfoProto()
            copy.CopyFrom(info)
            copy.name += suffix
            copies.append(copy)
        return copies


def nest(model: ModelProto, kind: str, seed: int) -> tuple[ModelProto, set[str]]:
    """Move a random stretch of nodes into a body.

    Parameters
    ----------
    kind
        "If" (both branches are the stretch), "Loop" or "Scan" (the body runs once).

    Returns
    -------
    The model, and the names of the nodes outside the body.
    """
    flat = canonicalize(load(model))
    shapes, proto = infer(flat), flat.edit().proto
    rng = np.random.default_rng(seed)
    nodes = [_copy(n) for n in proto.graph.node]
    start = int(rng.integers(len(nodes)))
    end = int(rng.integers(start + 1, len(nodes) + 1))
    consumed = {n for node in nodes[end:] for n in node.input}
    consumed |= {o.name for o in proto.graph.output}
    names = [o for node in nodes[start:end] for o in node.output if o in consumed]
    results = [helper.make_tensor_value_info(o, shapes.dtype(o), shapes.shape(o)) for o in names]
    part = _Part(nodes[start:end], results)
    if kind == "If":
        proto.graph.input.append(helper.make_tensor_value_info("chosen", TensorProto.BOOL, []))
        middle = [_branches(part)]
    else:
        middle = _run_once(kind, part)
        scalars = [
            ("once", TensorProto.INT64, [], [1]),
            ("axis0", TensorProto.INT64, [1], [0]),
            ("clock", TensorProto.FLOAT, [1], [0]),
        ]
        proto.graph.initializer.extend(helper.make_tensor(*scalar) for scalar in scalars)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[:start], *middle, *nodes[end:]])
    for tensor in proto.graph.initializer:
        if tensor.name in flat.weights:
            tensor.raw_data = bytes(flat.weights[tensor.name].raw())
    return proto, {n.name for n in (*nodes[:start], *nodes[end:])}


def _copy(node: NodeProto) -> NodeProto:
    return NodeProto.FromString(node.SerializeToString())


def _branches(part: _Part) -> NodeProto:
    """Return an If whose two branches compute the same."""
    branches = {}
    for branch in ("then", "else"):
        suffix = f"_{branch}"
        branches[f"{branch}_branch"] = helper.make_graph(
            part.renamed_nodes(suffix), branch, [], part.renamed_results(suffix)
        )
    names = [info.name for info in part.results]
    return helper.make_node("If", ["chosen"], names, name="If", **branches)


def _run_once(kind: str, part: _Part) -> list[NodeProto]:
    """Return a Loop or Scan of one pass that stacks the results, and a Squeeze per stack."""
    names = [info.name for info in part.results]
    stacks = [f"{name}_stack" for name in names]
    nodes, outputs = part.renamed_nodes("_in"), part.renamed_results("_in")
    if kind == "Loop":
        going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
        goes = helper.make_tensor_value_info("goes", TensorProto.BOOL, [])
        inputs = [helper.make_tensor_value_info("count", TensorProto.INT64, []), going]
        condition = helper.make_node("Identity", ["going"], ["goes"])
        body = helper.make_graph([condition, *nodes], "body", inputs, [goes, *outputs])
        node = helper.make_node("Loop", ["once", ""], stacks, name="Loop", body=body)
    else:
        tick = helper.make_tensor_value_info("tick", TensorProto.FLOAT, [])
        body = helper.make_graph(nodes, "body", [tick], outputs)
        scan = {"body": body, "num_scan_inputs": 1}
        node = helper.make_node("Scan", ["clock"], stacks, name="Scan", **scan)
    squeezes = [
        helper.make_node("Squeeze", [stack, "axis0"], [name], name=f"{name}_single")
        for stack, name in zip(stacks, names, strict=True)
    ]
    return [node, *squeezes]
