"""Inlining of local functions."""

from __future__ import annotations

from onnx import ModelProto

from onnxprune.errors import ModelError
from onnxprune.ir.model import EditableModel


def inline_functions(model: EditableModel) -> EditableModel:
    """Return the model with calls of local functions replaced by their nodes."""
    if not model.proto.functions:
        return model
    try:
        from onnx import inliner

        proto = ModelProto()
        proto.CopyFrom(inliner.inline_local_functions(model.proto))
    except Exception as problem:  # errors of onnx's C++ code have no common type
        raise ModelError(
            "model-invalid", f"local functions cannot be inlined: {str(problem).splitlines()[0]}"
        ) from problem
    return EditableModel(proto, model.weights, model.path)
