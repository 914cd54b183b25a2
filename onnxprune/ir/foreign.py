"""Graphs of other libraries as ModelProto: onnx-graphsurgeon's and onnx_ir's.

Neither library keeps all of a file. A graph that `to_graphsurgeon` or `to_onnx_ir` made knows the
model that it came from, from which the rest is put back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from onnx import ModelProto, TensorProto

from onnxprune.errors import MissingExtraError, ModelError
from onnxprune.ir.edit import copy_message
from onnxprune.ir.merge import merge_models
from onnxprune.ir.model import ModelView

SOURCE = "onnxprune_source"  # attribute of a graph, or key of its metadata: the model it came from


class SurgeonGraph(Protocol):
    """`onnx_graphsurgeon.Graph`, which type checkers need not have installed."""

    nodes: Any
    import_domains: Any
    opset: Any


class IrModel(Protocol):
    """`onnx_ir.Model`, which type checkers need not have installed."""

    @property
    def opset_imports(self) -> Any:
        """Versions of the operator sets."""

    @property
    def meta(self) -> Any:
        """Values that are not written to files."""


def library_of(value: object) -> str:
    """Return the library of an object's class: "onnx_graphsurgeon", "onnx_ir" or another."""
    return type(value).__module__.partition(".")[0]


def export_graph(graph: Any, source: ModelView | None = None) -> ModelProto:
    """Return a graph of onnx-graphsurgeon as a message, with what it lost.

    Parameters
    ----------
    source
        Model that the graph came from; by default the one that `to_graphsurgeon` noted.

    Raises
    ------
    ModelError
        onnx-graphsurgeon cannot write the graph.
    """
    surgeon = import_graphsurgeon()
    source = source or getattr(graph, SOURCE, None)

    def export(graph: Any) -> ModelProto:
        # bodies and outputs may have no type, which onnxruntime infers
        exported: ModelProto = surgeon.export_onnx(graph, do_type_check=False)
        return exported

    new = call("onnx-graphsurgeon", lambda: export(graph))
    if source is not None:
        skeleton = copy_message(source.proto)
        base = call("onnx-graphsurgeon", lambda: export(surgeon.import_onnx(skeleton)))
        _restore(new, base, source)
    return new


def export_ir(model: Any, source: ModelView | None = None) -> tuple[ModelProto, str]:
    """Return a model of onnx_ir as a message, and the folder of its external data.

    Raises
    ------
    ModelError
        onnx_ir cannot write the model.
    """
    ir = import_onnx_ir()
    source = source or model.meta.get(SOURCE)
    new: ModelProto = call("onnx_ir", lambda: ir.to_proto(model))
    folders = {
        str(value.const_value.base_dir)
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    if len(folders) > 1:
        raise ModelError(
            "model-foreign",
            f"the external data are in several folders, {', '.join(sorted(folders))}: load them "
            "with onnx_ir.external_data.load_to_model first",
        )
    if source is not None:
        skeleton = copy_message(source.proto)
        base = call("onnx_ir", lambda: ir.to_proto(ir.from_proto(skeleton)))
        _restore(new, base, source)
    return new, folders.pop() if folders else ""


def import_graphsurgeon() -> Any:
    """Return the module onnx_graphsurgeon; MissingExtraError if it is not installed."""
    try:
        import onnx_graphsurgeon
    except ImportError as problem:
        raise MissingExtraError("onnx-graphsurgeon", "graphsurgeon", "this conversion") from problem
    return onnx_graphsurgeon


def import_onnx_ir() -> Any:
    """Return the module onnx_ir; MissingExtraError if it is not installed."""
    try:
        import onnx_ir
    except ImportError as problem:
        raise MissingExtraError("onnx-ir", "ir", "this conversion") from problem
    return onnx_ir


def _restore(new: ModelProto, base: ModelProto, source: ModelView) -> None:
    """Put back what the way to another library and back loses."""
    copies = merge_models(new, base, source.proto)
    present = {tensor.name: tensor for tensor in new.graph.initializer}
    passed = {tensor.name for tensor in base.graph.initializer}
    tensors = []
    for tensor in source.proto.graph.initializer:
        if tensor.name in present:
            tensors.append(copy_message(present.pop(tensor.name)))
        # weights that bodies read, whose values may have changed there
        elif tensor.name in copies:
            tensors.append(copies[tensor.name])
        # weights that no node reads: onnxruntime ignores them, tools that read weights do not
        elif tensor.name not in passed:
            tensors.append(copy_message(tensor))
            if tensor.data_type != TensorProto.STRING:
                tensors[-1].raw_data = bytes(source.weights[tensor.name].raw())
    tensors += [copy_message(tensor) for tensor in present.values()]
    del new.graph.initializer[:]
    new.graph.initializer.extend(tensors)


def call(library: str, function: Callable[[], Any]) -> Any:
    """Call a library; ModelError with its message if it fails."""
    try:
        return function()
    except Exception as problem:  # of any type: neither library has errors of its own
        reason = str(problem).partition("\n")[0][:200]
        raise ModelError(
            "model-foreign",
            f"{library} cannot convert the model: {type(problem).__name__} {reason}",
        ) from problem
