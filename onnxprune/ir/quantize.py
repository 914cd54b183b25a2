"""int8 copies by onnxruntime's static quantization, for targets without float support."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxprune.errors import DataError
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.linear import LINEAR_OPS
from onnxprune.ir.nodes import STANDARD_DOMAINS

PER_CHANNEL_OPSET = 13  # the first QuantizeLinear with an axis
_INTEGER_OPS = frozenset(
    "QuantizeLinear DequantizeLinear QLinearConv QLinearMatMul ConvInteger MatMulInteger".split()
)


@dataclass
class FeedReader:
    """Iterator over feeds in the form that onnxruntime's calibrators take."""

    feeds: Iterator[Mapping[str, np.ndarray]]

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """Return the next feed, None after the last."""
        return next(self.feeds, None)


def is_quantized(model: Model) -> bool:
    """Return whether the graph has integer operators or QuantizeLinear/DequantizeLinear."""
    nodes = model.proto.graph.node
    return any(n.op_type in _INTEGER_OPS and n.domain in STANDARD_DOMAINS for n in nodes)


def quantize(model: Model, samples: Mapping[str, np.ndarray] | None, *, qdq: bool) -> Model:
    """Quantize to symmetric int8 weights and activations, with ranges from the samples.

    Parameters
    ----------
    samples
        Input name -> array (n, ...). Real inputs: ranges of random ones are meaningless.
    qdq
        True: QuantizeLinear/DequantizeLinear pairs as TensorRT expects them (on weights per output
        channel, biases in float32). False: QLinearConv and others, for integer-only runtimes.

    Raises
    ------
    DataError
        There are no samples.
    """
    if not samples:
        raise DataError(
            "int8-without-data",
            "an int8 copy needs real inputs to determine ranges: "
            "pass --data, or a model that is already quantized",
        )
    from onnxruntime import quantization

    feeds = _split_samples(samples)

    # TensorRT requires zero points of 0
    options = {"ActivationSymmetric": True, "WeightSymmetric": True}
    if qdq:
        options |= {"QuantizeBias": False, "AddQDQPairToWeight": True, "DedicatedQDQPair": True}
    form = quantization.QuantFormat
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "int8.onnx"
        # onnxruntime writes the result to a file only
        quantization.quantize_static(
            ModelProto.FromString(to_bytes(model)),
            str(path),
            FeedReader(iter(feeds)),
            op_types_to_quantize=list(LINEAR_OPS) if qdq else None,
            quant_format=form.QDQ if qdq else form.QOperator,
            per_channel=qdq and model.opset >= PER_CHANNEL_OPSET,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options=options,
        )
        return load(path.read_bytes())


def _split_samples(samples: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return feeds of batch 1."""
    feeds = []
    for i in range(min(map(len, samples.values()))):
        feeds.append({n: a[i : i + 1] for n, a in samples.items()})
    return feeds
