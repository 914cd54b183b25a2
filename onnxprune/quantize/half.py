"""Conversion to float16 with float32 inputs and outputs, and a check of its range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import TensorProto

from onnxprune.data.dataset import Data
from onnxprune.errors import ModelError, UsageError
from onnxprune.ir.half import to_half
from onnxprune.ir.io import Model
from onnxprune.ir.linear import LINEAR_OPS
from onnxprune.ir.quantize import is_quantized
from onnxprune.ir.runtime import Session

LARGEST = float(np.finfo(np.float16).max)
MASKED = -1e8  # values below it are those of masks, which the converter clamps to -LARGEST
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
    layers = [node for node in model.proto.graph.node if node.op_type in LINEAR_OPS]
    multiplied = {name for node in layers for name in node.input}
    for name, weight in model.weights.items():
        if weight.dtype == TensorProto.FLOAT and 0 not in weight.shape:
            values = weight.array()
            _check(f"weight {name!r}", values if name in multiplied else _unmasked(values))
    for tensors in _activations(model, data):
        for name, array in tensors.items():
            if isinstance(array, np.ndarray) and array.dtype == np.float32 and array.size:
                _check(f"tensor {name!r}", array if name in multiplied else _unmasked(array))
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


def _unmasked(values: np.ndarray) -> np.ndarray:
    """Return the values that no mask has set."""
    return values[~(values < MASKED)]


def _check(what: str, values: np.ndarray) -> None:
    """Raise ModelError if a value is not within the range of float16."""
    largest = float(np.abs(values).max(initial=0))
    if not largest <= LARGEST:
        raise ModelError(
            "half-overflow",
            f"{what} reaches {largest:.3g}, more than {LARGEST:.0f}, the largest float16: "
            "scale the model, or use --quantize int8",
        )
