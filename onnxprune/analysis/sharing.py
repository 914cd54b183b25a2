"""Coupling of weights that several nodes use.

These are heads on pyramid levels, siamese branches and tied embeddings.

A convolution or product that is applied to several tensors is one layer to its author. Its uses
are cut alike, so that the weight is stored once after the cut as before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.analysis.causes import Axis, Causes
from onnxprune.analysis.state import Record, Use

PASSING = ("Gather", "Transpose")  # an embedding, and the table of a tied output projection
_RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
_RECURRENT_WEIGHTS = (1, 2)  # slots; their biases and initial states have two axes as well
LEAST_RANK = 2  # biases and scales are duplicated where their cuts differ, which costs little


def shared_uses(record: Record) -> dict[str, list[Use]]:
    """Return, per weight, the uses that multiply data by it or look it up, where there are several.

    Other uses are left out: exporters share the constants of formulas (position encodings, masks)
    by accident, and a norm computed from a weight does not make a layer of it.
    """
    multiplying = {product.node for product in record.products}
    uses: dict[str, list[Use]] = {}
    for use in record.uses:
        op = record.nodes[use.node].op_type
        layer = use.node in multiplying or op in PASSING
        if op in _RECURRENT:
            layer &= use.slot in _RECURRENT_WEIGHTS
        if layer and len(use.axes) >= LEAST_RANK:
            uses.setdefault(use.tensor, []).append(use)
    return {
        tensor: alike
        for tensor, alike in uses.items()
        if len(alike) > 1 and not multiplying.isdisjoint(use.node for use in alike)
    }


def tie(record: Record) -> None:
    """Unify the axes of all uses of each shared weight."""
    for uses in shared_uses(record).values():
        tie_uses(record.causes, uses)


def tie_uses(causes: Causes, uses: Sequence[Use]) -> None:
    """Unify the axes of uses of weights of one shape, axis by axis."""
    for axis in range(len(uses[0].axes)):
        tied: list[Axis] = []
        for use in uses:
            ids = use.axes[axis]
            if ids is not None:
                tied.append(ids)
        # a frozen use first: the others take over its reason
        tied.sort(key=lambda ids: isinstance(ids, np.ndarray))
        for other in tied[1:]:
            causes.unify(tied[0], other)
