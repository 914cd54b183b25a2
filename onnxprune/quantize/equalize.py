"""Cross-layer equalization: channels of neighboring convolutions with alike weight ranges.

With one scale per tensor, channels of small weights lose most of their digits. A channel that
passes only through positively homogeneous operators can be divided by a factor in one convolution
and multiplied by it in the next (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction"). Factors are powers of two, so that the float graph computes the
same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxprune.ir.nodes import attribute
from onnxprune.quantize.graph import count_uses, initializers, producers

SWEEPS = 8  # over chains of layers, until no factor changes
_MOST = 2.0**10  # of a factor: a channel of zeros has no range
# f(s x) = s f(x) for s > 0, channel by channel
_HOMOGENEOUS = frozenset("Relu LeakyRelu MaxPool AveragePool GlobalAveragePool".split())


class _Pair(NamedTuple):
    """Two convolutions with nothing but homogeneous operators between."""

    first: NodeProto
    second: NodeProto


def equalize(proto: ModelProto) -> int:
    """Equalize the weights of a float graph in place; return the number of changed pairs."""
    values = initializers(proto)
    pairs = _find_pairs(proto, values)
    changed: set[str] = set()
    for _ in range(SWEEPS):
        moved = [pair.first.name for pair in pairs if _balance(pair, values)]
        changed.update(moved)
        if not moved:
            break
    return len(changed)


def _find_pairs(proto: ModelProto, values: Mapping[str, TensorProto]) -> list[_Pair]:
    """Return the pairs of convolutions whose channels in between no other node sees."""
    made, uses = producers(proto), count_uses(proto)
    pairs = []
    for node in proto.graph.node:
        if not _has_own_weights(node, values, uses) or not _splits_inputs(node, values):
            continue
        source = made.get(node.input[0])
        tensor = node.input[0]
        while source is not None and source.op_type in _HOMOGENEOUS and uses[tensor] == 1:
            tensor = source.input[0]
            source = made.get(tensor)
        if source is None or uses[tensor] != 1 or not _has_own_weights(source, values, uses):
            continue
        pairs.append(_Pair(source, node))
    return pairs


def _has_own_weights(
    node: NodeProto, values: Mapping[str, TensorProto], uses: Mapping[str, int]
) -> bool:
    """Return whether a node is a convolution with constant weights that no other one shares."""
    operands = [name for name in node.input[1:] if name]
    return node.op_type == "Conv" and all(n in values and uses[n] == 1 for n in operands)


def _splits_inputs(node: NodeProto, values: Mapping[str, TensorProto]) -> bool:
    """Return whether the second axis of the weight, or the first, counts the input channels."""
    return attribute(node, "group", 1) == 1 or values[node.input[1]].dims[1] == 1


def _balance(pair: _Pair, values: Mapping[str, TensorProto]) -> bool:
    """Move factors from the first convolution of a pair to the second; return whether any did."""
    first, second = (numpy_helper.to_array(values[n.input[1]]) for n in pair)
    group = attribute(pair.second, "group", 1)
    # (channels, ...): what each channel of the first is multiplied with in the second
    columns = np.moveaxis(second, 1, 0) if group == 1 else second.reshape(group, -1)
    if len(columns) != len(first) or first.dtype != np.float32:
        return False
    ranges = [np.abs(w).reshape(len(w), -1).max(1).astype(np.float64) for w in (first, columns)]
    known = (ranges[0] > 0) & (ranges[1] > 0)
    ratio = np.divide(ranges[0], ranges[1], out=np.ones_like(ranges[0]), where=known)
    factors = np.clip(np.exp2(np.rint(np.log2(ratio) / 2)), 1 / _MOST, _MOST).astype(np.float32)
    if np.all(factors == 1):
        return False
    _write(values[pair.first.input[1]], first / factors.reshape(-1, *[1] * (first.ndim - 1)))
    if len(pair.first.input) > 2:
        bias = values[pair.first.input[2]]
        _write(bias, numpy_helper.to_array(bias) / factors)
    scaled = columns * factors.reshape(-1, *[1] * (columns.ndim - 1))
    if group == 1:
        scaled = np.moveaxis(scaled, 0, 1)
    _write(values[pair.second.input[1]], scaled.reshape(second.shape))
    return True


def _write(tensor: TensorProto, values: np.ndarray) -> None:
    """Replace the values of an initializer."""
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
