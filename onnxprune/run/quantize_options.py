"""Options of the recipe that quantize the pruned model."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.quantize.names import AUTO, CALIBRATORS, FORM_NAMES
from onnxprune.run import parsers
from onnxprune.run.device_options import DeviceOptions
from onnxprune.run.option import option_field

INT8, FP16 = "int8", "fp16"


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(DeviceOptions):
    """Options of the stage "quantize", which follows the repair."""

    quantize: str | None = option_field(
        None,
        parsers.optional(parsers.choice(INT8, FP16)),
        "quantize",
        "NAME",
        "Type of the written model: int8 (calibrated on --data) or fp16. Default: that of MODEL.",
    )
    quantize_form: str = option_field(
        AUTO,
        parsers.choice(AUTO, *FORM_NAMES),
        "quantize",
        "NAME",
        f"Form of the int8 graph: {', '.join(FORM_NAMES)}; auto = that of the device or engine.",
    )
    quantize_calibrate: str = option_field(
        AUTO,
        parsers.choice(AUTO, *CALIBRATORS),
        "quantize",
        "NAME",
        f"Ranges of activations: {', '.join(CALIBRATORS)}; auto = least divergence on calibration "
        "inputs held back for this.",
    )
    quantize_exclude: tuple[str, ...] = option_field(
        (),
        parsers.globs,
        "quantize",
        "GLOB",
        "Nodes, by name pattern of the node or its output, that stay in float32.",
        repeatable=True,
    )
