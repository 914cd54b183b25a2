"""Warnings about a measurement: wrong outputs, missing int8 operators, unaligned widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.engines.base import Engine, multiple_of
from onnxprune.engines.measurement import Measurement
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute
from onnxprune.ir.outputs import as_array
from onnxprune.ir.quantize import is_quantized, weight_shapes

# Winograd convolutions in float32 reach 6e-4 on a network of 40 layers; a wrong conversion is far
# above that. The other limit is for bfloat16, float16 and int8.
DIFFERENCE_LIMITS = {"f32": 1e-3}
OTHER_DIFFERENCE_LIMIT = 0.1
_ROUNDS_UP = "rounds up to multiples of"
_SHOWN = 4  # layers named in a warning


def difference(outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> float:
    """Return the largest |a - b| / max |b| over the outputs.

    It is infinite if an output is missing, has another shape, or is NaN on one side only.
    """
    worst = 0.0
    for name, expected in reference.items():
        # an output that the engine dropped is a wrong conversion
        actual, reference_value = as_array(outputs.get(name)), as_array(expected)
        if actual is None or reference_value is None:
            if actual is not reference_value:
                return float("inf")
            continue
        if actual.shape != reference_value.shape:
            return float("inf")
        if reference_value.dtype.kind in "OSU":
            # strings have no distance, and rounding may choose another one
            continue
        a, b = actual.astype(np.float64), reference_value.astype(np.float64)
        # nanmax below would ignore a NaN that only one of them has
        if not np.array_equal(np.isnan(a), np.isnan(b)):
            return float("inf")
        if a.size:
            # relative to the largest value: small values of a softmax must not dominate
            scale = float(np.nanmax(np.abs(b), initial=0.0)) or 1.0
            worst = max(worst, float(np.nanmax(np.abs(a - b), initial=0.0)) / scale)
    return worst


def difference_warnings(measurements: Sequence[Measurement]) -> list[str]:
    """Return a warning for each measurement whose outputs differ from onnxruntime's."""
    warnings = []
    for m in measurements:
        limit = DIFFERENCE_LIMITS.get(m.precision, OTHER_DIFFERENCE_LIMIT)
        if m.difference is not None and m.difference > limit:
            warnings.append(
                f"{m.model} on {m.engine}: outputs differ from onnxruntime's by {m.difference:.2g} "
                f"of the largest value (limit {limit:g}); the engine computes another function, "
                "ignore its times"
            )
    return warnings


def precision_warnings(models: Mapping[str, Model], precision: str) -> list[str]:
    """Return a warning for each model that runs in float although int8 was requested."""
    if precision != "int8":
        return []
    return [
        f"{label} has no QuantizeLinear or integer operators: it runs in float, not in int8"
        for label, model in models.items()
        if not is_quantized(model)
    ]


def width_warnings(
    engine: Engine, models: Mapping[str, Model], precision: str = "f32"
) -> list[str]:
    """Return a warning for each model with channel counts that the engine rounds up.

    Widths that a model shares with the first one are not reported: they are the original's. A
    quantized graph runs in int8 at any precision.
    """
    warnings = []
    given = _list_widths(next(iter(models.values()))) if len(models) > 1 else {}
    for label, model in models.items():
        layers = _list_widths(model)
        kind = "int8" if is_quantized(model) else precision
        multiple, odd = 1, []
        for name, (width, depthwise) in layers.items():
            block = multiple_of(engine, kind, depthwise)
            # below one block, no smaller width would fill it
            if width > block and width % block and given.get(name, (0,))[0] != width:
                odd.append(f"{name} {width}")
                multiple = max(multiple, block)
        if not odd:
            continue
        shown = ", ".join(odd[:_SHOWN]) + (", ..." if len(odd) > _SHOWN else "")
        warnings.append(
            f"{label}: {len(odd)} of {len(layers)} convolutions have output channels that "
            f"{engine.name} {_ROUNDS_UP} {multiple} ({shown}); "
            "fewer MACs may not save time there. With --round-to auto widths are whole or half "
            "blocks: compare both by onnxprune bench, small layers may be slower"
        )
    return warnings


def is_width_warning(text: str) -> bool:
    """Return whether a warning is one of `width_warnings`."""
    return _ROUNDS_UP in text


def _list_widths(model: Model) -> dict[str, tuple[int, bool]]:
    """Return output channels and whether it is depthwise by convolution.

    Those of graph outputs are left out, because they stay unpruned.
    """
    graph, shapes = model.proto.graph, weight_shapes(model)
    results = {o.name for o in graph.output}
    widths = {}
    for node in graph.node:
        if node.op_type != "Conv" or node.input[1] not in shapes or results & set(node.output):
            continue
        outputs, inputs = shapes[node.input[1]][:2]
        depthwise = attribute(node, "group", 1) > 1 and inputs == 1
        widths[node.name or node.output[0]] = outputs, depthwise
    return widths
