"""Merge weights that an exporter wrote several times.

Exporters that trace a module once per call (TensorFlow, some of PyTorch's) store a shared weight
per call. Equal bytes of a trained weight are no accident, so its copies become one initializer.
"""

from __future__ import annotations

import hashlib

from onnx import NodeProto, TensorProto

from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import nested
from onnxprune.ir.weights import Weight

WEIGHT_SLOTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
LEAST_RANK, LEAST_VALUES = 2, 16  # smaller weights are equal by chance more often than by origin
PREFIX_BYTES = 4096  # that two weights must share before all of their bytes are compared


def merge_copies(model: EditableModel) -> None:
    """Let nodes that multiply by equal weights read one initializer. `model` is changed."""
    interface = {i.name for i in model.proto.graph.input}
    first_of: dict[tuple[object, ...], list[str]] = {}
    renamed: dict[str, str] = {}
    nodes = [n for g in nested(model.proto.graph) for n in g.node]
    for node in nodes:
        name = _weight_of(node)
        if name not in model.weights or name in interface or name in renamed:
            continue
        weight = model.weights[name]
        if weight.dtype not in FLOATS or len(weight.shape) < LEAST_RANK:
            continue
        raw = memoryview(weight.raw())
        key = (weight.dtype, weight.shape, hashlib.sha256(raw[:PREFIX_BYTES]).digest())
        names = first_of.setdefault(key, [])
        if name in names:
            continue
        original = next((n for n in names if memoryview(model.weights[n].raw()) == raw), "")
        if original and _varies(weight):
            renamed[name] = original
        else:
            names.append(name)
    for node in nodes if renamed else ():
        slot = WEIGHT_SLOTS.get(node.op_type)
        if slot is not None and len(node.input) > slot:
            node.input[slot] = renamed.get(node.input[slot], node.input[slot])


def _weight_of(node: NodeProto) -> str:
    """Return the name of the weight operand, "" for nodes without one."""
    slot = WEIGHT_SLOTS.get(node.op_type)
    return node.input[slot] if slot is not None and len(node.input) > slot else ""


def _varies(weight: Weight) -> bool:
    """Return whether a weight holds enough different values to be a trained one."""
    values = weight.array().ravel()
    return values.size >= LEAST_VALUES and len(set(values[:LEAST_VALUES].tolist())) > 2
