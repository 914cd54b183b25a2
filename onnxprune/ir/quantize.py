"""What quantized graphs are made of, and feeds of calibrators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.ir.io import Model
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


def weight_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the shapes of initializers, and of tensors that Q/DQ compute from these."""
    shapes = {name: weight.shape for name, weight in model.weights.items()}
    for node in model.proto.graph.node:
        pair = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if pair and node.domain in STANDARD_DOMAINS and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    return shapes


def is_quantized(model: Model) -> bool:
    """Return whether the graph has integer operators or QuantizeLinear/DequantizeLinear."""
    nodes = model.proto.graph.node
    return any(n.op_type in _INTEGER_OPS and n.domain in STANDARD_DOMAINS for n in nodes)
