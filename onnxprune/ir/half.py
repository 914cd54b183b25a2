"""Conversion of a model to float16."""

from __future__ import annotations

from onnx import ModelProto

from onnxprune.ir.dependencies import sort_nodes
from onnxprune.ir.edit import copy_message, replace_nodes
from onnxprune.ir.io import Model, load, to_bytes

_HALF_SCALES_OPSET = 19  # the first in which scales of quantized values may be float16


def to_half(model: Model) -> Model:
    """Convert to float16 with onnxruntime's converter; inputs and outputs stay float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    blocked = [*DEFAULT_OP_BLOCK_LIST]
    if model.opset < _HALF_SCALES_OPSET:
        blocked += ["QuantizeLinear", "DequantizeLinear"]
    proto = convert_float_to_float16(
        ModelProto.FromString(to_bytes(model)), keep_io_types=True, op_block_list=blocked
    )
    # the converter may append casts at the end; nodes in order keep it, and groups their names
    replace_nodes(proto.graph, map(copy_message, sort_nodes(proto.graph.node)))
    return load(proto)
