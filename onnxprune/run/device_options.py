"""Option of the recipe that names the device which will run the model."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.run import parsers
from onnxprune.run.option import option_field


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Device of the stage "plan"."""

    device: str | None = option_field(
        None,
        parsers.optional(parsers.device),
        "plan",
        "NAME",
        "Device that will run the model (list: onnxprune devices): widths are multiples of its "
        "block, and operators that its compiler lacks are named.",
    )
