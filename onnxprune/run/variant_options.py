"""Options of the recipe that build further models: alternatives, controls and a trade-off curve."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.run import parsers
from onnxprune.run.option import option_field
from onnxprune.run.quantize_options import QuantizeOptions


@dataclass(frozen=True, kw_only=True)
class VariantOptions(QuantizeOptions):
    """Options of the stage "variants"."""

    low_rank: bool = option_field(
        False,
        parsers.flag,
        "variants",
        "",
        "Write layers as two of a lower rank each where a first plan saves by it; the ranks share "
        "the targets with the widths.",
    )
    candidate: tuple[str, ...] = option_field(
        "auto",
        parsers.candidates,
        "variants",
        "CRITERION+ALLOCATOR",
        "Alternative criterion and allocator for the same target, used if the first --metric "
        "improves by more than its standard error on the selection labels, without labels if the "
        "divergence on reserved inputs falls; none disables it; auto = a few alternatives, if "
        "criterion and allocator are auto and there are labels.",
        repeatable=True,
    )
    thorough: bool = option_field(
        False,
        parsers.flag,
        "variants",
        "",
        "Also try widths without the weight of residual streams, as a candidate; twice the time.",
    )
    curve: bool = option_field(
        False,
        parsers.flag,
        "variants",
        "",
        "Also build and evaluate models at 80, 70, 60, 50 and 40% of the MACs: the trade-off "
        "curve of the report.",
    )
    control: int = option_field(
        0,
        parsers.integer(0),
        "variants",
        "N",
        "Also repair and evaluate N models of equal widths with random channels, as a baseline.",
    )
