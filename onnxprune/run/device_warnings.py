"""Warnings of a run about the device that will run the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from onnxprune.deploy import TARGETS
from onnxprune.engines.devices import get_device
from onnxprune.errors import plural
from onnxprune.ir.io import Model
from onnxprune.run.adapter import channel_multiple, engines_of
from onnxprune.run.recipe import Recipe

MOST_OPS = 6


def device_warnings(model: Model, recipe: Recipe) -> Iterator[str]:
    """Yield operators that the device lacks, and that widths follow no block."""
    if recipe.round_to == "auto" and channel_multiple(recipe) == 1:
        engines = ", ".join(engines_of(recipe))
        yield (
            f"--round-to auto keeps any width: {engines} computes no blocks of channels at "
            f"{recipe.precision}; other engines may run such widths slowly (see onnxprune devices)"
        )
    if recipe.device is None:
        return
    device = get_device(recipe.device)
    if not device.handoff:
        return
    target = TARGETS.get(device.handoff)
    if target.any_op:
        return
    lacking = Counter(n.op_type for n in model.proto.graph.node if n.op_type not in target.ops)
    if not lacking:
        return
    ops = [f"{op} ({plural(count, 'node')})" for op, count in lacking.most_common(MOST_OPS)]
    more = f" and {len(lacking) - MOST_OPS} more" if len(lacking) > MOST_OPS else ""
    if device.handoff == "jetson":
        # TensorRT computes on the GPU what the table, which is the DLA's, does not list
        if not device.name.endswith("-dla"):
            return
        yield f"{device.title} leaves these operators to the GPU: {', '.join(ops)}{more}"
        return
    yield (
        f"{device.title}: {target.title} does not list {', '.join(ops)}{more}; "
        f"onnxprune handoff --to {device.handoff} checks the graph that it writes, node by node"
    )
