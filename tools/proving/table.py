"""All spaces of worlds by operator, and the rows that have none."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.analysis.movement import MOVES
from onnxprune.analysis.rules import RULES
from onnxprune.ir.passes.expand_fused import EXPANDED
from proving.families import (
    cached,
    contractions,
    elementwise,
    fused,
    movement,
    no_kernel,
    normalization,
    quantized,
    recurrent,
    reductions,
    resampling,
    selection,
)
from proving.worlds import Space

_FAMILIES = (
    contractions,
    recurrent,
    cached,
    normalization,
    reductions,
    resampling,
    movement,
    selection,
    quantized,
    fused,
    no_kernel,
    elementwise,
)

# Rows of the rule table without worlds: operator -> why
_RANDOM = "random: a cut draws other numbers; verification gives both models the same"
NO_WORLDS: Mapping[str, str] = {
    **dict.fromkeys("Bernoulli RandomNormalLike RandomUniformLike".split(), _RANDOM),
    "DecoderMaskedSelfAttention": "onnxruntime has a kernel for CUDA alone",
    "Scatter": "deprecated before the opset of the products; ScatterElements has its rule",
}


def rows() -> list[str]:
    """Return the operators that move positions or are expanded, and those of the rule table."""
    return list(dict.fromkeys([*RULES, *MOVES, *EXPANDED]))


def spaces(op: str) -> list[Space]:
    """Return the spaces of an operator, in the order of their definition."""
    values = [value for family in _FAMILIES for value in vars(family).values()]
    return [value for value in values if isinstance(value, Space) and op in value.ops]


def demands_bits(op: str) -> bool:
    """Return whether all worlds of an operator must be equal to the bit."""
    return all(op in space.exact for space in spaces(op))
