"""Extraction of a part of a graph as a model of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
from onnx import NodeProto, helper

from onnxprune.errors import ModelError
from onnxprune.ir.io import Model
from onnxprune.ir.model import ModelView
from onnxprune.ir.nodes import captured
from onnxprune.ir.shapes import Shapes


def reads(node: NodeProto) -> set[str]:
    """Return the names of all tensors that a node reads, also inside its bodies."""
    return {n for n in node.input if n} | captured(node)


def extract(
    model: ModelView,
    shapes: Shapes,
    nodes: Sequence[NodeProto],
    inputs: Collection[str],
    outputs: Sequence[str],
    parameters: Collection[str] = (),
) -> Model:
    """Return a model of some nodes of another; weights are shared, not copied.

    Parameters
    ----------
    nodes
        Nodes in topological order.
    inputs
        Activations that become inputs, as far as the nodes read them.
    outputs
        Tensors that become outputs.
    parameters
        Initializers that become inputs as well.

    Raises
    ------
    ModelError
        The element type of an input is unknown.
    """
    used = set(outputs)
    for node in nodes:
        # bodies read tensors that are not among the operands
        used |= reads(node)
    graph = onnx.GraphProto(name="segment")
    graph.node.extend(nodes)
    for name in [*sorted(set(inputs) & used), *sorted(parameters)]:
        kind = model.weights[name].dtype if name in model.weights else shapes.dtype(name)
        if not kind:
            raise ModelError("type-unknown", f"the element type of tensor {name!r} is unknown")
        graph.input.append(helper.make_value_info(name, helper.make_tensor_type_proto(kind, None)))
    # without types: onnxruntime infers them
    for name in outputs:
        graph.output.append(helper.make_empty_tensor_value_info(name))
    weights = {n: w for n, w in model.weights.items() if n in used and n not in parameters}
    # in the order of the original, so that equal segments have equal bytes
    for tensor in model.proto.graph.initializer:
        if tensor.name in weights:
            graph.initializer.append(tensor)
    for sparse in model.proto.graph.sparse_initializer:
        if sparse.values.name in used:
            graph.sparse_initializer.append(sparse)
    proto = onnx.ModelProto(
        ir_version=model.proto.ir_version, opset_import=model.proto.opset_import
    )
    proto.graph.CopyFrom(graph)
    return Model(proto, weights)


def live_after(model: ModelView) -> list[set[str]]:
    """Return for each position p of the node list the tensors that are alive there.

    They are defined before p (or given) and read at p or later, or are graph outputs.
    """
    nodes = list(model.proto.graph.node)
    outputs = {o.name for o in model.proto.graph.output}
    live = [set(outputs) for _ in range(len(nodes) + 1)]
    # backwards: a tensor is alive from its producer to its last consumer
    for p in range(len(nodes) - 1, -1, -1):
        activations = {n for n in reads(nodes[p]) if n not in model.weights}
        live[p] = (live[p + 1] - set(nodes[p].output)) | activations
    return live
