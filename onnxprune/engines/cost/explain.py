"""Explain layers of a pruned model that lost MACs but not time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onnxprune.engines.base import Engine, multiple_of
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute, label
from onnxprune.ir.quantize import is_quantized, weight_shapes

WORTH = 0.02  # share of the total time below which a layer is not explained
LESS_MACS = 0.9  # share of its MACs above which a layer was hardly pruned
REWARD = 0.5  # least expected share of saved time per share of saved MACs
SMALL_MS = 0.01  # below this a layer's time is mostly the kernel call


def explain(
    rows: Iterable[Mapping[str, Any]],
    pruned: Model,
    engine: Engine,
    precision: str = "f32",
    most: int = 5,
) -> tuple[str, ...]:
    """Return a sentence per layer, the slowest first; a last one counts those beyond `most`.

    Parameters
    ----------
    rows
        A mapping per layer: "node", "macs" (before, after) and, if the engine was profiled,
        "time_ms" (before, after; None = no such layer).
    pruned
        The pruned model, for widths and operators of its layers.
    engine
        Engine that was measured.
    """
    # a layer that only one of the models has cannot be compared
    timed = [
        r for r in rows if r.get("time_ms") and None not in r["time_ms"] and min(r["time_ms"]) > 0
    ]
    total = sum(r["time_ms"][0] for r in timed)
    nodes = {label(node): node for node in pruned.proto.graph.node}
    precision = "int8" if is_quantized(pruned) else precision
    sentences = []
    # by the time that is left: the slowest layer of the pruned model matters most
    for row in sorted(timed, key=lambda r: -r["time_ms"][1]):
        (macs, macs_after), (time, time_after) = row["macs"], row["time_ms"]
        kept_macs, kept_time = macs_after / max(macs, 1), time_after / time
        if time < WORTH * total or kept_macs > LESS_MACS:
            continue
        # it saved enough time
        if 1 - kept_time >= REWARD * (1 - kept_macs):
            continue
        reason = _find_reason(nodes.get(row["node"]), pruned, engine, precision, time_after)
        sentences.append(
            f"{row['node']}: {kept_macs:.0%} of its MACs remain and {kept_time:.0%} of its time "
            f"({time / total:.0%} of all layers'){reason}"
        )
    more = len(sentences) - most
    if more <= 0:
        return tuple(sentences)
    last = f"{more} more layers of {engine.name} kept a larger share of their time than of MACs"
    return (*sentences[:most], last)


def _find_reason(node: Any, pruned: Model, engine: Engine, precision: str, time_ms: float) -> str:
    """Return why a layer did not get faster, as far as its shape shows, else ""."""
    shape = weight_shapes(pruned).get(node.input[1]) if _is_conv(node) else None
    if shape is not None:
        reason = _check_widths(node, shape, engine, precision)
        if reason:
            return reason
    # the shape explains nothing; time per call is the other common cause
    computed = "model" in engine.limits()  # no kernel is called there
    return (
        ": so short that the kernel call dominates" if time_ms < SMALL_MS and not computed else ""
    )


def _is_conv(node: Any) -> bool:
    """Return whether a node exists and is a convolution."""
    return node is not None and node.op_type == "Conv"


def _check_widths(node: Any, shape: tuple[int, ...], engine: Engine, precision: str) -> str:
    """Return how a convolution's channels waste blocks of the engine, "" if they do not."""
    outputs, inputs = shape[:2]
    group = attribute(node, "group", 1)
    multiple = multiple_of(engine, precision, group > 1 and inputs == 1)
    if group > 1 and inputs == 1:
        if outputs % multiple:
            return f": depthwise, its {outputs} channels are not a multiple of {multiple}"
        return ": depthwise, bound by memory rather than arithmetic"
    # the second axis of a weight counts the channels of one group
    widths = {"input": inputs * group, "output": outputs}
    odd = [
        f"{width} {side} channels"
        for side, width in widths.items()
        if width > multiple and width % multiple
    ]
    if odd:
        return (
            f": its {' and '.join(odd)} are not a multiple of {multiple}, "
            f"the block size of {engine.name}"
        )
    # after the unaligned widths, which a round_to can still mend
    for side in ("output", "input"):
        if widths[side] < multiple:
            return f": its {widths[side]} {side} channels fill less than one block of {multiple}"
    return ""
