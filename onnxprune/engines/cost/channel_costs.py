"""What one channel costs: in multiply-accumulates, in values that are made, or in time.

Source: Liu et al. 2021, "Group Fisher Pruning for Practical Network Compression": importance is divided by it (METHODS.md section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.groups import Analysis
from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions
from onnxprune.engines.cost.layers import LatencyCache
from onnxprune.engines.cost.savings import group_savings
from onnxprune.ir.nodes import label

NORMALIZATIONS = ("none", "flops", "act", "latency")
_CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TINY = 1e-12


def channel_costs(
    analysis: Analysis,
    normalization: str,
    engine: str = "onnxruntime",
    cache: LatencyCache | None = None,
    threads: int = 1,
    kept: Mapping[str, Sequence[int]] | None = None,
    options: EngineOptions | None = None,
    least: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """What one channel of each group costs: group -> float64 (size,). At the widths of `kept` where flops count, else at those of the analysis.

    flops: 1e9 multiply-accumulates in its producers and consumers; act: 1e6 values that its producers make; none: 1; latency: milliseconds that the next
    step down the engine's staircase saves (its channel multiple), over the channels that the step needs, the layers timed alone.

    Parameters
    ----------
    options
        Of the engine; None = `threads` and else the defaults.
    least
        Widths that groups may not go below, such as those that a round_to leaves; 1 where not said.
    """
    if normalization == "none":
        return {g.name: np.ones(g.size) for g in analysis.groups}
    if normalization == "flops":
        return {n: np.maximum(v / 1e9, _TINY) for n, v in analysis.savings("macs", kept).items()}
    if normalization == "act":
        return {
            g.name: np.maximum(_activations(analysis, g.name) / 1e6, _TINY) for g in analysis.groups
        }
    timed, options = ENGINES.get(engine), options or EngineOptions(threads=threads)
    multiple = timed.channel_multiple(options.precision)
    steps = {
        g.name: max((g.size - 1) // multiple * multiple, (least or {}).get(g.name, 1), 1)
        for g in analysis.groups
        if g.size > 1
    }
    found = group_savings(
        timed,
        analysis,
        options,
        cache,
        to={n: k for n, k in steps.items() if k < analysis.group(n).size},
    )
    return {g.name: np.full(g.size, max(found[g.name] / g.size, _TINY)) for g in analysis.groups}


def _activations(analysis: Analysis, name: str) -> np.ndarray:
    """Positions that each channel has in its producers' outputs, an inference: h * w of a convolution, 1 of a linear layer."""
    total = np.zeros(analysis.group(name).size)
    depthwise = {
        label(n) for n in analysis.model.proto.graph.node if n.op_type in ("Conv", "ConvTranspose")
    }
    for member in analysis.members(name):
        makes = (
            member.site.role == "produces"
            or member.site.role == "carries"
            and member.site.node in depthwise
        )
        if makes and len(analysis.model.weights[member.site.tensor].shape) > 1:
            np.add.at(total, member.channels, float(_positions(analysis, member.site.node)))
    return total


def _positions(analysis: Analysis, node: str) -> int:
    """Of the contraction that a node is, or leads to (a weight may be dequantized or transposed first)."""
    readers: dict[str, NodeProto] = {
        n: reader for reader in analysis.model.proto.graph.node for n in reader.input
    }
    found = next((n for n in analysis.model.proto.graph.node if label(n) == node), None)
    while found is not None and found.op_type not in _CONTRACTIONS:
        found = readers.get(found.output[0])
    shape = analysis.shapes.shape(found.output[0]) if found is not None else None
    if found is None or not shape:
        return 1
    inner = shape[2:] if found.op_type.startswith("Conv") else shape[1:-1]
    return math.prod(n for n in inner if isinstance(n, int))
