"""Running a part of a graph: from tensors that are there to tensors that are wanted."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
from onnx import NodeProto, helper

from onnxprune.errors import ModelError
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import captured
from onnxprune.ir.shapes import Shapes


def reads(node: NodeProto) -> set[str]:
    """Everything a node reads, its bodies included."""
    return {n for n in node.input if n} | captured(node)


def extract(
    model: Model,
    shapes: Shapes,
    nodes: Sequence[NodeProto],
    inputs: Collection[str],
    outputs: Sequence[str],
    parameters: Collection[str] = (),
) -> Model:
    """A model of some nodes of another.

    inputs: activations that are given; outputs: what is wanted; parameters: initializers that become inputs as well. Weights are shared.
    """
    used = set().union(*map(reads, nodes), outputs) if nodes else set(outputs)
    given = sorted(set(inputs) & used)
    graph = onnx.GraphProto(name="segment")
    graph.node.extend(nodes)
    for name in [*given, *sorted(parameters)]:
        kind = model.weights[name].dtype if name in model.weights else shapes.dtype(name)
        if not kind:
            raise ModelError("type-unknown", f"the type of tensor {name!r} is unknown")
        graph.input.append(helper.make_value_info(name, helper.make_tensor_type_proto(kind, None)))
    for name in outputs:
        graph.output.append(helper.make_empty_tensor_value_info(name))
    weights = {n: w for n, w in model.weights.items() if n in used and n not in parameters}
    for tensor in model.proto.graph.initializer:
        if tensor.name in weights:
            graph.initializer.append(tensor)
    graph.sparse_initializer.extend(
        s for s in model.proto.graph.sparse_initializer if s.values.name in used
    )
    proto = onnx.ModelProto(
        ir_version=model.proto.ir_version, opset_import=model.proto.opset_import
    )
    proto.graph.CopyFrom(graph)
    return Model(proto, weights)


def live_after(model: Model) -> list[set[str]]:
    """For every position p in the node list: tensors made before p (or given) that are read at p or later, or are outputs."""
    nodes = list(model.proto.graph.node)
    wanted = {o.name for o in model.proto.graph.output}
    live = [set(wanted) for _ in range(len(nodes) + 1)]
    for p in range(len(nodes) - 1, -1, -1):
        live[p] = (live[p + 1] - set(nodes[p].output)) | {
            n for n in reads(nodes[p]) if n not in model.weights
        }
    return live
