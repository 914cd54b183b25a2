"""Where MACs fell and time did not: the layers that a pruned model did not get faster by, and the likely reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onnxprune.engines.base import Engine
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute, label

WORTH = 0.02  # layers below this share of the time are not worth a sentence
LESS_MACS = 0.9  # a layer that kept more than this was hardly cut
REWARD = 0.5  # at least this part of the MACs saved should be saved of the time
SMALL_MS = 0.01  # below this a layer's time is mostly the call


def explain(
    rows: Iterable[Mapping[str, Any]],
    pruned: Model,
    engine: Engine,
    precision: str = "f32",
    most: int = 5,
) -> tuple[str, ...]:
    """One sentence a layer, the slowest first; beyond `most` their number.

    Parameters
    ----------
    rows
        A mapping a layer: "node", "macs" (before, after) and, where the engine tells, "time_ms" (before, after; None = not there).
    pruned
        The cut model, for the widths and kinds of its layers.
    engine
        The one that was measured.
    """
    timed = [
        r for r in rows if r.get("time_ms") and None not in r["time_ms"] and min(r["time_ms"]) > 0
    ]
    total = sum(r["time_ms"][0] for r in timed)
    nodes = {label(node): node for node in pruned.proto.graph.node}
    found = []
    for row in sorted(timed, key=lambda r: -r["time_ms"][1]):
        (macs, macs_left), (time, time_left) = row["macs"], row["time_ms"]
        kept_macs, kept_time = macs_left / max(macs, 1), time_left / time
        if (
            time < WORTH * total
            or kept_macs > LESS_MACS
            or 1 - kept_time >= REWARD * (1 - kept_macs)
        ):
            continue
        reason = _reason(nodes.get(row["node"]), pruned, engine, precision, time_left)
        found.append(
            f"{row['node']}: {kept_macs:.0%} of its MACs remain and {kept_time:.0%} of its time ({time / total:.0%} of all layers'){reason}"
        )
    more = (
        [
            f"{len(found) - most} more layers of {engine.name} kept more of their time than of their MACs"
        ]
        if len(found) > most
        else []
    )
    return (*found[:most], *more)


def _reason(node: Any, pruned: Model, engine: Engine, precision: str, time_ms: float) -> str:
    """Why a layer did not get faster, as far as its shape tells; "" where it does not."""
    multiple = engine.channel_multiple(precision)
    if node is not None and node.op_type == "Conv" and node.input[1] in pruned.weights:
        outputs, inputs = pruned.weights[node.input[1]].shape[:2]
        group = attribute(node, "group", 1)
        if group > 1 and inputs == 1:
            return (
                f": depthwise, its {outputs} channels are no multiple of {multiple}"
                if outputs % multiple
                else ": depthwise, it moves data more than it computes"
            )
        odd = [
            f"{n} {kind} channels"
            for kind, n in (("input", inputs * group), ("output", outputs))
            if n > multiple and n % multiple
        ]
        if odd:
            return f": its {' and '.join(odd)} are no multiple of {multiple}, which {engine.name} computes in blocks of"
        for kind, n in (("output", outputs), ("input", inputs * group)):
            if n < multiple:
                return f": its {n} {kind} channels fill less than one block of {multiple}"
    computed = "model" in engine.limits()  # nothing is called there
    return ": so short that the call is most of it" if time_ms < SMALL_MS and not computed else ""
