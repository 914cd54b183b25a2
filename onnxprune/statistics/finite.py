"""Checks that weights and activations are finite, before figures are computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.movement import MOVES
from onnxprune.analysis.ops.elementwise import elementwise
from onnxprune.analysis.rules import row
from onnxprune.data.dataset import Data
from onnxprune.errors import DataError, ModelError
from onnxprune.ir.nodes import label
from onnxprune.ir.runtime import Session
from onnxprune.statistics.channels import consumed

FIRST_SAMPLES = 8  # inputs that activations are checked on before any stage
# sums of 1e8 squares of values up to this size fit into float32
LARGEST_ACTIVATION = 1e15


def check_weights(analysis: Analysis) -> None:
    """Check the weights of layers.

    Constants of elementwise operators may be infinite, as masks, and so may operands without a
    role in products: masks of fused attention, thresholds, values of padding.

    Raises
    ------
    ModelError
        A weight holds NaN or infinity; the message names it and its node.
    """
    checked: set[str] = set()
    for use in analysis.uses:
        node = analysis.nodes[use.node]
        weight = analysis.model.weights[use.tensor]
        is_layer = node.op_type not in MOVES and row(node.op_type, node.domain) is not elementwise
        if use.tensor in checked or not (is_layer or "produces" in use.roles):
            continue
        checked.add(use.tensor)
        values = weight.array()
        # the sum is NaN or infinite if a value is, and needs no array of its own
        if values.dtype.kind != "f" or np.isfinite(values.sum(dtype=np.float64)):
            continue
        multiplied = not {"produces", "consumes"}.isdisjoint(use.roles)
        bad = int((~np.isfinite(values) if multiplied else np.isnan(values)).sum())
        if bad:
            raise ModelError(
                "weights-not-finite",
                f"weight {use.tensor!r} of node {label(node)!r} ({node.op_type}) holds NaN or "
                f"infinity in {bad} of {values.size} values; export the model again from a "
                "checkpoint without them",
            )


def check_activations(analysis: Analysis, data: Data, threads: int) -> None:
    """Check what layers read, on the first inputs.

    Raises
    ------
    DataError
        An activation is NaN, infinite or too large for sums of products; the message names it and
        its node.
    """
    names = list(dict.fromkeys(tensor for tensor, _ in consumed(analysis)))
    if not names:
        return
    session = Session(analysis.model, names, threads=threads)
    for feeds in islice(data.batches(FIRST_SAMPLES), 1):
        values = session.run(feeds)
        require_finite(analysis, values)
        _require_small(analysis, values)


def _require_small(analysis: Analysis, values: Mapping[str, np.ndarray]) -> None:
    """Raise DataError for the first of these activations whose products overflow float32."""
    peaks = {n: _find_peak(v) for n, v in values.items() if v.dtype.kind == "f" and v.size}
    makers = {name: node for node in analysis.nodes for name in node.output}
    for name, peak in peaks.items():
        if peak > LARGEST_ACTIVATION:
            node = makers.get(name)
            by = f", which node {label(node)!r} ({node.op_type}) computes," if node else ""
            raise DataError(
                "activations-too-large",
                f"tensor {name!r}{by} reaches {peak:.1e} on the data; products of values above "
                f"{LARGEST_ACTIVATION:.0e} overflow: check the scale of the inputs (--mean, "
                "--std, --scale)",
            )


def _find_peak(value: np.ndarray) -> float:
    """Return the largest magnitude."""
    return float(max(value.max(), -value.min()))


def require_finite(analysis: Analysis, values: Mapping[str, np.ndarray]) -> None:
    """Raise DataError for the first of these activations, in graph order, that is not finite."""
    bad = {name for name, value in values.items() if not _is_finite(value)}
    if not bad:
        return
    for node in analysis.nodes:
        for name in node.output:
            if name in bad:
                raise DataError(
                    "activations-not-finite",
                    f"tensor {name!r}, which node {label(node)!r} ({node.op_type}) computes, is "
                    "NaN or infinite on the data; check the scale of the inputs "
                    "(--mean, --std, --scale) and that the model's own outputs "
                    "are finite",
                )


def _is_finite(value: np.ndarray) -> bool:
    """Return whether all numbers are finite."""
    if value.dtype.kind != "f":
        return True
    with np.errstate(all="ignore"):
        total = value.sum(dtype=np.float64)
    # finite values may overflow in the sum
    return bool(np.isfinite(total)) or bool(np.isfinite(value).all())
