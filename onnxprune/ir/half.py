"""Conversion of a model to float16."""

from __future__ import annotations

from onnx import ModelProto

from onnxprune.ir.io import Model, load, to_bytes


def to_half(model: Model) -> Model:
    """The graph in float16, inputs and outputs left in float32 (onnxruntime's converter)."""
    from onnxruntime.transformers.float16 import convert_float_to_float16  # type: ignore[import-untyped]

    proto = convert_float_to_float16(ModelProto.FromString(to_bytes(model)), keep_io_types=True)
    return load(proto)
