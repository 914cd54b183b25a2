"""Conversion to float16 with float32 inputs and outputs, and a check of its range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import TensorProto

from onnxprune.data.dataset import Data
from onnxprune.errors import ModelError, UsageError
from onnxprune.ir.half import to_half
from onnxprune.ir.io import Model
from onnxprune.ir.quantize import is_quantized
from onnxprune.ir.runtime import Session

LARGEST = float(np.finfo(np.float16).max)
_SAMPLES, _BATCH = 16, 4  # all activations of a batch are in memory


def quantize_half(model: Model, data: Data) -> Model:
    """Return the model in float16; its inputs and outputs stay float32.

    Raises
    ------
    UsageError
        The model is quantized to integers.
    ModelError
        A weight or an activation exceeds the range of float16, or the converter fails.
    """
    if is_quantized(model):
        raise UsageError("quantize-twice", "the model is quantized already: convert a float model")
    for name, weight in model.weights.items():
        if weight.dtype == TensorProto.FLOAT and 0 not in weight.shape:
            _check(f"weight {name!r}", float(np.abs(weight.array()).max()))
    for tensors in _activations(model, data):
        for name, array in tensors.items():
            if isinstance(array, np.ndarray) and array.dtype == np.float32 and array.size:
                _check(f"tensor {name!r}", float(np.abs(array).max()))
    try:
        return to_half(model)
    except Exception as problem:  # the converter's exceptions share no base class
        raise ModelError(
            "quantize-failed", f"onnxruntime cannot convert the model to float16: {problem}"
        ) from problem


def _activations(model: Model, data: Data) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield all tensors of some inputs, batch by batch."""
    names = [name for node in model.proto.graph.node for name in node.output if name]
    session = Session(model, names, optimize=False)
    taken = 0
    for feed in data.batches(_BATCH):
        yield {**feed, **session.run(feed)}
        taken += _BATCH
        if taken >= _SAMPLES:
            return


def _check(what: str, largest: float) -> None:
    """Raise ModelError if a value is not within the range of float16."""
    if not largest <= LARGEST:
        raise ModelError(
            "half-overflow",
            f"{what} reaches {largest:.3g}, more than {LARGEST:.0f}, the largest float16: "
            "scale the model, or use --quantize int8",
        )
