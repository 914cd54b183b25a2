"""What the channels of each group cost in time on an engine: the price that a target on latency is paid in.

MACs misprice them: a depthwise layer has few and takes long, a small layer's time is its call, and a channel inside of a block is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxprune.analysis.groups import Analysis, Member
from onnxprune.engines.base import DEFAULTS, Engine, EngineOptions, fix_shapes, require
from onnxprune.engines.cost.contractions import tensor_shapes
from onnxprune.engines.cost.layers import LatencyCache, LayerSpec, layer_spec, time_layer
from onnxprune.ir.nodes import label

_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LEAST = 1e-3  # of the largest saving: no group is free, and none saves less than nothing


def group_savings(
    engine: Engine,
    analysis: Analysis,
    options: EngineOptions = DEFAULTS,
    cache: LatencyCache | None = None,
    tell: Callable[[str], None] = lambda _: None,
    to: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """Milliseconds that each group as a whole is worth: what halving it alone saves in the layers it touches, scaled to all of it.

    Layers are timed alone, at both widths, each shape once. What is no contraction counts nothing.

    Parameters
    ----------
    cache
        Where times are kept; None = for this call alone.
    tell
        Called with one line a group.
    to
        Widths to compare with in place of half, such as the next step of the engine's staircase; a group that is not in it is halved.
    """
    require(engine)
    cache = LatencyCache() if cache is None else cache
    specs = layer_specs(analysis, options)
    multiple = engine.channel_multiple(options.precision)
    found = {}
    for number, group in enumerate(analysis.groups):
        tell(f"timing layers, group {number + 1} of {len(analysis.groups)}")
        half = -(-(group.size // 2) // multiple) * multiple
        kept = (to or {}).get(
            group.name, half if 0 < half < group.size else max(group.size // 2, 1)
        )
        saved = 0.0
        for before, after, share in _changes(specs, analysis.members(group.name), kept):
            saved += time_layer(engine, before, options, cache) - share * time_layer(
                engine, after, options, cache
            )
        found[group.name] = saved * group.size / max(group.size - kept, 1)
    floor = LEAST * max(found.values(), default=0.0)
    return {name: max(ms, floor) for name, ms in found.items()}


def layer_specs(
    analysis: Analysis, options: EngineOptions = DEFAULTS
) -> dict[str, tuple[LayerSpec, str]]:
    """Node -> (its shapes, its weight) of every contraction with a constant weight and known shapes."""
    model = analysis.model
    known = tensor_shapes(fix_shapes(model, options.shapes))
    found = {}
    for node in model.proto.graph.node:
        if node.op_type in _OPS and node.input[1] in model.weights and node.input[0] in known:
            found[label(node)] = (
                layer_spec(node, known[node.input[0]], model.weights[node.input[1]].shape),
                node.input[1],
            )
    return found


def _changes(
    specs: Mapping[str, tuple[LayerSpec, str]], members: tuple[Member, ...], kept: int
) -> list[tuple[LayerSpec, LayerSpec, float]]:
    """(shapes before, after, factor on the time after) of the layers that change when the first `kept` channels of a group stay."""
    gone: dict[str, list[int]] = {}
    for member in members:
        node = member.site.node
        if node in specs and member.site.tensor == specs[node][1]:
            places = _widths(specs[node][0])
            if member.site.axis in places:
                counts = gone.setdefault(node, [0, 0])
                counts[places.index(member.site.axis)] += int(
                    np.count_nonzero(member.channels >= kept)
                )
    found = []
    for node, (inputs, outputs) in gone.items():
        spec = specs[node][0]
        first, last = _widths(spec)
        wide_in, wide_out = spec.weight[first], spec.weight[last]
        if spec.depthwise:
            left = wide_out - outputs
            found.append((spec, spec.resized(left * spec.input[1] // wide_out, left), 1.0))
        elif (
            spec.group > 1
        ):  # whole groups or positions in them: the shape that is left is not known here, the share of the work is
            found.append((spec, spec, (1 - inputs / wide_in) * (1 - outputs / wide_out)))
        else:
            found.append((spec, spec.resized(wide_in - inputs, wide_out - outputs), 1.0))
    return found


def _widths(spec: LayerSpec) -> tuple[int, int]:
    """Axes of the weight that are the input and the output channels."""
    if spec.op == "Conv" or (spec.op == "Gemm" and dict(spec.attributes).get("transB")):
        return 1, 0
    return (
        (0, 1)
        if spec.op in ("ConvTranspose", "Gemm")
        else (len(spec.weight) - 2, len(spec.weight) - 1)
    )
