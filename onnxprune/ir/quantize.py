"""int8 copies of a model for targets that take no float, by onnxruntime's static quantization."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxprune.errors import DataError
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.nodes import STANDARD_DOMAINS

PER_CHANNEL_OPSET = 13  # the first QuantizeLinear with an axis
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def is_quantized(model: Model) -> bool:
    """Whether the graph holds integer operators or Q/DQ."""
    names = {n.op_type for n in model.proto.graph.node if n.domain in STANDARD_DOMAINS}
    return bool(
        names
        & {
            "QuantizeLinear",
            "DequantizeLinear",
            "QLinearConv",
            "QLinearMatMul",
            "ConvInteger",
            "MatMulInteger",
        }
    )


def quantize(model: Model, samples: Mapping[str, np.ndarray] | None, *, qdq: bool) -> Model:
    """Symmetric int8 weights (by channel) and activations, ranges from the samples.

    Parameters
    ----------
    samples
        Input name -> array (n, ...): real inputs; ranges of random ones mean nothing.
    qdq
        True: QuantizeLinear/DequantizeLinear in the form that TensorRT wants (pairs on weights, biases in float32).
        False: QLinearConv and the like, as integer-only runtimes want.

    Raises
    ------
    DataError
        No samples.
    """
    if not samples:
        raise DataError(
            "int8-without-data",
            "an int8 copy needs real inputs for its ranges: give --data, or a model that is quantized already",
        )
    from onnxruntime import quantization  # type: ignore[import-untyped]

    rows = _rows(samples)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """One sample at a time."""

        def __init__(self) -> None:
            self.rows: Iterator[dict[str, np.ndarray]] = iter(rows)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        made = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            ModelProto.FromString(to_bytes(model)),
            str(made),
            Reader(),
            op_types_to_quantize=list(OPERATORS) if qdq else None,
            quant_format=quantization.QuantFormat.QDQ
            if qdq
            else quantization.QuantFormat.QOperator,
            per_channel=qdq and model.opset >= PER_CHANNEL_OPSET,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options=symmetric
            | (
                {"QuantizeBias": False, "AddQDQPairToWeight": True, "DedicatedQDQPair": True}
                if qdq
                else {}
            ),
        )
        return load(made.read_bytes())


def _rows(samples: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Feeds of batch 1."""
    return [
        {n: a[i : i + 1] for n, a in samples.items()}
        for i in range(min(map(len, samples.values())))
    ]
