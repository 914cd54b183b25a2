"""Latency that the channels of each group cost on an engine, to price a latency budget.

MACs misprice channels: a depthwise layer has few and takes long, a small layer's time is its kernel
call, and a channel within a block is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from onnxprune.analysis.groups import Analysis, Member
from onnxprune.engines.base import DEFAULTS, Engine, EngineOptions, fix_shapes, require
from onnxprune.engines.cost.contractions import tensor_shapes
from onnxprune.engines.cost.layers import LatencyCache, LayerSpec, layer_spec, time_layer
from onnxprune.ir.linear import LINEAR_OPS
from onnxprune.ir.nodes import label

LEAST = 1e-3  # of the largest saving: no group is free or has a negative cost


def group_savings(
    engine: Engine,
    analysis: Analysis,
    options: EngineOptions = DEFAULTS,
    cache: LatencyCache | None = None,
    progress: Callable[[str], None] = lambda _: None,
    to: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """Return the milliseconds that each group costs.

    It is what halving the group alone saves in the layers it touches, scaled to all its channels.
    Layers are timed alone at both widths, each shape once. Only contractions count.

    Parameters
    ----------
    cache
        Measured times; None = for this call only.
    progress
        Called with a line of text per group.
    to
        Group -> width to compare with, such as the next step of the engine's staircase; groups
        that are not listed are halved.
    """
    require(engine)
    # in memory: layers of one model repeat the same shapes
    cache = LatencyCache() if cache is None else cache
    specs = layer_specs(analysis, options)
    multiple = engine.channel_multiple(options.precision)
    costs = {}
    for number, group in enumerate(analysis.groups):
        progress(f"timing layers, group {number + 1} of {len(analysis.groups)}")
        width = (to or {}).get(group.name, _halve(group.size, multiple))
        # a group may touch several layers, as producer, consumer or both
        saved = 0.0
        for before, after, share in _list_changes(specs, analysis.members(group.name), width):
            before_ms = time_layer(engine, before, options, cache)
            saved += before_ms - share * time_layer(engine, after, options, cache)
        # the staircase is steep at some widths: half the width averages over steps
        costs[group.name] = saved * group.size / max(group.size - width, 1)
    # noise makes the saving of a cheap group negative
    floor = LEAST * max(costs.values(), default=0.0)
    return {name: max(ms, floor) for name, ms in costs.items()}


def _halve(size: int, multiple: int) -> int:
    """Return half a width, rounded up to the engine's multiple if that is less than the width."""
    half = -(-(size // 2) // multiple) * multiple
    return half if 0 < half < size else max(size // 2, 1)


def layer_specs(
    analysis: Analysis, options: EngineOptions = DEFAULTS
) -> dict[str, tuple[LayerSpec, str]]:
    """Return node -> (spec, weight) of contractions with constant weight and known shapes."""
    model = analysis.model
    # without --shape, at the sizes at which costs are counted
    known = tensor_shapes(fix_shapes(model, options.shapes or analysis.counted_at.inputs))
    specs = {}
    for node in model.proto.graph.node:
        if node.op_type in LINEAR_OPS and node.input[1] in model.weights and node.input[0] in known:
            weight = node.input[1]
            spec = layer_spec(node, known[node.input[0]], model.weights[weight].shape)
            specs[label(node)] = (spec, weight)
    return specs


def _list_changes(
    specs: Mapping[str, tuple[LayerSpec, str]], members: tuple[Member, ...], kept: int
) -> Iterator[tuple[LayerSpec, LayerSpec, float]]:
    """Yield (spec before, spec after, factor on the time after) of the layers that change.

    Parameters
    ----------
    members
        Members of a group.
    kept
        The first `kept` channels of the group remain.
    """
    removed: dict[str, list[int]] = {}
    for member in members:
        node = member.site.node
        # biases follow the width of their layer, and other nodes are not timed
        if node not in specs or member.site.tensor != specs[node][1]:
            continue
        axes = specs[node][0].layout.axes(len(specs[node][0].weight))
        if member.site.axis in axes:
            counts = removed.setdefault(node, [0, 0])
            count = int(np.count_nonzero(member.channels >= kept))
            counts[axes.index(member.site.axis)] += count
    # after all members: a group may be input and output of the same layer
    for node, (inputs, outputs) in removed.items():
        spec = specs[node][0]
        first, last = spec.layout.axes(len(spec.weight))
        wide_in, wide_out = spec.weight[first], spec.weight[last]
        if spec.depthwise:
            # inputs and outputs shrink alike, so that the outputs per input stay the same
            width = wide_out - outputs
            yield spec, spec.resized(width * spec.input[1] // wide_out, width), 1.0
        elif spec.group > 1:
            # entire groups may be removed or positions within them: the remaining shape is not
            # known here, the share of the work is
            yield spec, spec, (1 - inputs / wide_in) * (1 - outputs / wide_out)
        else:
            yield spec, spec.resized(wide_in - inputs, wide_out - outputs), 1.0
