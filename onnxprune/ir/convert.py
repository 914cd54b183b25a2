"""Models in the forms of other libraries and back, with everything that their round trips lose.

The core works on the protobuf message itself: these forms are for surgery by hand.
"""

from __future__ import annotations

from typing import Any

from onnx import ModelProto

from onnxprune.ir import foreign
from onnxprune.ir.io import Model, Source, load, to_bytes

__all__ = ["from_graphsurgeon", "from_onnx_ir", "to_graphsurgeon", "to_onnx_ir", "to_proto"]


def to_proto(model: Source) -> ModelProto:
    """Return a model as a message with all its values; it must be smaller than 2 GB."""
    proto = ModelProto()
    proto.ParseFromString(to_bytes(load(model)))
    return proto


def to_graphsurgeon(model: Source) -> Any:
    """Return an `onnx_graphsurgeon.Graph` that `from_graphsurgeon` turns into the same file.

    All weights are in memory. The graph notes the model that it came from.

    Raises
    ------
    ModelError
        onnx-graphsurgeon cannot read the model, or it takes more than 2 GB.
    MissingExtraError
        onnx-graphsurgeon is not installed.
    """
    model = load(model)
    surgeon = foreign.import_graphsurgeon()
    proto = to_proto(model)
    graph = foreign.call("onnx-graphsurgeon", lambda: surgeon.import_onnx(proto))
    setattr(graph, foreign.SOURCE, model)
    return graph


def from_graphsurgeon(graph: foreign.SurgeonGraph, source: Source | None = None) -> Model:
    """Return the model of an `onnx_graphsurgeon.Graph`.

    Parameters
    ----------
    source
        Model that the graph came from, for graphs that `to_graphsurgeon` did not make and for
        copies (`graph.copy()`). What onnx-graphsurgeon loses is taken from there: domain, version
        and documentation of the model, metadata of the model, graph and nodes, quantization
        annotations, attributes of types that it skips, weights that no node uses. Changes of the
        graph prevail.
    """
    return load(foreign.export_graph(graph, None if source is None else load(source)))


def to_onnx_ir(model: Source) -> Any:
    """Return an `onnx_ir.Model` that `from_onnx_ir` turns into the same file.

    Raises
    ------
    ModelError
        onnx_ir cannot read the model, or it takes more than 2 GB.
    MissingExtraError
        onnx_ir is not installed.
    """
    model = load(model)
    ir = foreign.import_onnx_ir()
    proto = to_proto(model)
    result = foreign.call("onnx_ir", lambda: ir.from_proto(proto))
    result.meta[foreign.SOURCE] = model
    return result


def from_onnx_ir(model: foreign.IrModel) -> Model:
    """Return the model of an `onnx_ir.Model`; external data stay in their files."""
    return load(model)
