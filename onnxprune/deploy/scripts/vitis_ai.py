"""Quantize and compile the bundle's models in Vitis AI's container; time them on a DPU.

python3 run.py [--quantizer vai] [--arch /opt/vitis_ai/compiler/arch/DPUCZDX8G/ZCU104/arch.json]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common

HOW = (
    "run this script in AMD's Vitis AI 3.5 container "
    "(docker_run.sh xilinx/vitis-ai-pytorch-cpu), which provides it"
)


class CalibrationReader:
    """The bundle's inputs as feeds of one sample, by onnxruntime's calibration interface."""

    def __init__(self, numpy: Any) -> None:
        with numpy.load(common.FOLDER / "inputs.npz") as samples:
            arrays = {name: samples[name] for name in samples.files}
        count = min(len(a) for a in arrays.values())
        feeds = [{n: a[i : i + 1] for n, a in arrays.items()} for i in range(count)]
        self.feeds: Iterator[dict[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feed, None after the last one."""
        return next(self.feeds, None)


def quantize(path: Path, output: Path) -> None:
    """Quantize a model to int8 with power-of-two scales, the DPU's arithmetic."""
    numpy, vai = common.module("numpy", HOW), common.module("vai_q_onnx", HOW)
    vai.quantize_static(
        str(path),
        str(output),
        CalibrationReader(numpy),
        quant_format=vai.QuantFormat.QDQ,
        calibrate_method=vai.PowerOfTwoMethod.MinMSE,
        activation_type=vai.QuantType.QInt8,
        weight_type=vai.QuantType.QInt8,
        enable_dpu=True,
    )


def main() -> None:
    """Compile every model if the compiler is installed, and time it if a DPU is."""
    manifest, chosen, results = common.start(__doc__.splitlines()[0])
    compiler, bench = common.find("vai_c_xir"), common.find("xdputil")
    if not compiler and not bench:
        common.tool("vai_c_xir", HOW)
    if compiler and not Path(chosen.arch).is_file():
        common.fail(
            f"--arch {chosen.arch} does not exist; "
            "the container has these files under /opt/vitis_ai/compiler/arch"
        )
    for name, path in common.models(manifest).items():
        compiled = results / f"{name}.xmodel"
        if compiler:
            quantized = path.with_name(f"{name}.int8.onnx")
            if not quantized.is_file():
                quantized = results / f"{name}.int8.onnx"
                quantize(path, quantized)
            common.run(
                [compiler, "-x", quantized, "-a", chosen.arch, "-o", results, "-n", name],
                results / f"{name}.compile.log",
            )
        if bench:
            if not compiled.is_file():
                common.fail(
                    f"{compiled} is missing: compile in the container first, "
                    "then copy the folder to the board"
                )
            common.run([bench, "xmodel", "-l", compiled], results / f"{name}.subgraphs.json")
            common.run(
                [bench, "benchmark", compiled, chosen.threads], results / f"{name}.benchmark.log"
            )
    common.write_json(
        results / "environment.json",
        {"compiled": bool(compiler), "timed": bool(bench), "options": vars(chosen)},
    )
    common.finish(results)


if __name__ == "__main__":
    main()
