"""Conversion of a model to float16."""

from __future__ import annotations

from onnx import ModelProto

from onnxprune.ir.io import Model, load, to_bytes


def to_half(model: Model) -> Model:
    """Convert to float16 with onnxruntime's converter; inputs and outputs stay float32."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto = convert_float_to_float16(ModelProto.FromString(to_bytes(model)), keep_io_types=True)
    # the converter may append casts at the end; a valid order stays, so that names and groups do
    if not _is_sorted(proto):
        ONNXModel(proto).topological_sort()
    return load(proto)


def _is_sorted(proto: ModelProto) -> bool:
    """Return whether no node of the main graph reads the output of a later one."""
    later = {name for node in proto.graph.node for name in node.output if name}
    for node in proto.graph.node:
        if later & set(node.input):
            return False
        later -= set(node.output)
    return True
