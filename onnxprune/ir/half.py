"""Conversion of a model to float16."""

from __future__ import annotations

from onnx import ModelProto

from onnxprune.ir.io import Model, load, to_bytes


def to_half(model: Model) -> Model:
    """Convert to float16 with onnxruntime's converter; inputs and outputs stay float32."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto = convert_float_to_float16(ModelProto.FromString(to_bytes(model)), keep_io_types=True)
    # the converter appends casts at the end, which is no valid order
    sorter = ONNXModel(proto)
    sorter.topological_sort()
    return load(sorter.model)
