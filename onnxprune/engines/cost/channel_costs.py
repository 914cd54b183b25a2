"""Cost per channel: multiply-accumulates, activation values, or time.

Group Fisher importance is divided by it (Liu et al. 2021, "Group Fisher Pruning for Practical
Network Compression").
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
from onnxprune.ir.linear import LINEAR_OPS
from onnxprune.ir.nodes import label

NORMALIZATIONS = ("none", "flops", "act", "latency")
_TINY = 1e-12  # a divisor must not be 0


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
    """Return the cost of each channel: group -> float64 of shape (size,).

    Parameters
    ----------
    normalization
        "flops": 1e9 multiply-accumulates in the group's producers and consumers. "act": 1e6
        activation values that its producers compute. "latency": milliseconds that the next step
        down the engine's staircase (its channel multiple) saves, divided by the channels of the
        step; layers are timed alone. "none": 1.
    engine
        Engine that latency is measured on.
    cache
        Measured times; None = for this call only.
    threads
        Threads of the engine if `options` is None.
    kept
        Kept channels that flops are counted at; None = all.
    options
        Options of the engine; None = defaults with `threads`.
    least
        Least width per group, such as that of a round_to; 1 for groups that are not listed.
    """
    if normalization == "none":
        return {g.name: np.ones(g.size) for g in analysis.groups}
    if normalization == "flops":
        # they depend on the widths of the neighboring groups
        macs = analysis.savings("macs", kept)
        return {name: np.maximum(values / 1e9, _TINY) for name, values in macs.items()}
    if normalization == "act":
        return {
            g.name: np.maximum(_count_activations(analysis, g.name) / 1e6, _TINY)
            for g in analysis.groups
        }
    timed, options = ENGINES.get(engine), options or EngineOptions(threads=threads)
    multiple = timed.channel_multiple(options.precision)
    steps = {}
    for group in analysis.groups:
        # the next lower width that is a multiple: removing fewer channels saves no time
        step = (group.size - 1) // multiple * multiple
        width = max(step, (least or {}).get(group.name, 1), 1)
        # a group at its least width is not listed: it is halved, so that it has a price too
        if width < group.size:
            steps[group.name] = width
    saved_ms = group_savings(timed, analysis, options, cache, to=steps)
    # group_savings scales the saving of a step to all channels
    return {g.name: np.full(g.size, max(saved_ms[g.name] / g.size, _TINY)) for g in analysis.groups}


def _count_activations(analysis: Analysis, name: str) -> np.ndarray:
    """Return the positions per channel in the outputs of a group's producers, per inference.

    A convolution has height x width positions, a linear layer 1.
    """
    total = np.zeros(analysis.group(name).size)
    convolutions = {
        label(n) for n in analysis.model.proto.graph.node if n.op_type in ("Conv", "ConvTranspose")
    }
    for member in analysis.members(name):
        site = member.site
        # a convolution that carries channels is depthwise and computes them
        computes = site.role == "produces" or (site.role == "carries" and site.node in convolutions)
        # a bias has one axis and adds no values
        if computes and len(analysis.model.weights[site.tensor].shape) > 1:
            np.add.at(total, member.channels, float(_count_positions(analysis, site.node)))
    return total


def _count_positions(analysis: Analysis, name: str) -> int:
    """Return the positions of the contraction that a node is or leads to.

    A weight may be dequantized or transposed before the contraction.
    """
    nodes = analysis.model.proto.graph.node
    consumers: dict[str, NodeProto] = {tensor: node for node in nodes for tensor in node.input}
    node = next((n for n in nodes if label(n) == name), None)
    while node is not None and node.op_type not in LINEAR_OPS:
        node = consumers.get(node.output[0])
    # as a linear layer: a share of the cost rather than none
    if node is None or not analysis.counted_at.knows(node.output[0]):
        return 1
    shape = analysis.counted_at.at(node.output[0])
    return math.prod(shape[2:] if node.op_type.startswith("Conv") else shape[1:-1])
