"""A graph for every row of the rule table and every movement operator.

In each graph the operator is between layers that can be cut. `Case.groups` gives the sizes of the
groups in ascending order. To add an operator, add a line to the module of its family.
"""

from __future__ import annotations

from cases import (
    convolution,
    elementwise,
    fused,
    matrix,
    movement,
    normalization,
    recurrent,
    sampling,
)
from cases.case import Case, between, tokens

__all__ = ["CASES", "NOTHING_TO_CUT", "Case", "between", "tokens"]

# operators without a channel that can be cut: LRN sums over neighboring channels and freezes them,
# Identity is removed before the analysis, DecoderMaskedSelfAttention has a kernel for CUDA alone,
# embeddings are normalized where they are gathered
NOTHING_TO_CUT = {
    "LRN",
    "Identity",
    "DecoderMaskedSelfAttention",
    "EmbedLayerNormalization",
    "QEmbedLayerNormalization",
}

CASES: dict[str, Case] = {}
for _family in (
    elementwise,
    convolution,
    matrix,
    normalization,
    sampling,
    movement,
    recurrent,
    fused,
):
    CASES |= _family.CASES
