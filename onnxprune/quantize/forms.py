"""Forms of int8 graphs by target: types, symmetry, and operators or pairs of Q/DQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxprune.errors import unknown
from onnxprune.ir.linear import LINEAR_OPS
from onnxprune.quantize.names import AUTO

# they need more digits than 8 bits have, and cost little
_FLOAT_OPS = frozenset("Softmax LayerNormalization InstanceNormalization TopK CumSum".split())
# inputs only: engines fuse what follows a layer, and quantize at the next one
_INPUTS_ONLY = {
    "OpTypesToExcludeOutputQuantization": [*LINEAR_OPS, "Add"],
    "QDQKeepRemovableActivations": True,
}


@dataclass(frozen=True)
class Form:
    """How a target wants an int8 graph.

    Attributes
    ----------
    signed
        Activations are int8; otherwise uint8.
    symmetric
        Activations have the zero point in the middle of their range.
    per_channel
        Weights have one scale per output channel.
    power_of_two
        All scales are powers of two.
    operators
        QLinearConv and others in place of QuantizeLinear/DequantizeLinear around float operators.
    fuses_adds
        An Add is fused into the layer before it, whose output then stays float.
    ops
        Operators to quantize; None = all that onnxruntime's tool knows but some that need digits.
    options
        Further options of onnxruntime's tool.
    """

    signed: bool = False
    symmetric: bool = False
    per_channel: bool = True
    power_of_two: bool = False
    operators: bool = False
    fuses_adds: bool = False
    ops: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


FORMS: Mapping[str, Form] = {
    # the only one whose kernels in onnxruntime are faster than float
    "u8s8": Form(),
    "tensorrt": Form(
        signed=True,
        symmetric=True,
        fuses_adds=True,
        ops=(*LINEAR_OPS, "Add"),
        # TensorRT wants pairs on weights, and biases in float32
        options={**_INPUTS_ONLY, "QuantizeBias": False, "AddQDQPairToWeight": True},
    ),
    "openvino": Form(
        signed=True,
        symmetric=True,
        fuses_adds=True,
        ops=(*LINEAR_OPS, "Add"),
        options={**_INPUTS_ONLY, "QuantizeBias": False},
    ),
    "pow2": Form(signed=True, symmetric=True, per_channel=False, power_of_two=True),
    # runtimes of integer arrays know no pairs, and shift by one scale per tensor
    "qlinear": Form(signed=True, symmetric=True, per_channel=False, operators=True),
}
# engines and hand-off targets
_OF_TARGET = {
    "tensorrt": "tensorrt",
    "trtexec": "tensorrt",
    "onnxruntime-tensorrt": "tensorrt",
    "jetson": "tensorrt",
    "openvino": "openvino",
    "vitis-ai": "pow2",
    "gemmini": "qlinear",
}


def find_form(name: str, target: str = "") -> tuple[str, Form]:
    """Return name and form; "auto" is the form of an engine or hand-off target, u8s8 for others.

    Raises
    ------
    UsageError
        There is no form of that name.
    """
    if name == AUTO:
        name = _OF_TARGET.get(target, "u8s8")
    if name not in FORMS:
        raise unknown("quantize-form", name, (*FORMS, AUTO), code="option-value")
    return name, FORMS[name]


def list_ops(form: Form) -> list[str]:
    """Return the operators that a form quantizes."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    if form.ops is not None:
        return list(form.ops)
    known = set(QLinearOpsRegistry)
    if not form.operators:
        known |= set(QDQRegistry)
    return sorted(known - _FLOAT_OPS)
