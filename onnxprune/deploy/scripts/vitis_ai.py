"""Quantize and compile the bundle's models for a DPU in Vitis AI's container, and time them where a DPU is.

python3 run.py [--arch /opt/vitis_ai/compiler/arch/DPUCZDX8G/ZCU104/arch.json]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common  # type: ignore[import-not-found]  # beside this file in the bundle

HOW = "run this script in AMD's Vitis AI 3.5 container (docker_run.sh xilinx/vitis-ai-pytorch-cpu), which has it"


class Reader:
    """The bundle's inputs, one at a time, as onnxruntime's calibration reads them."""

    def __init__(self, numpy: Any) -> None:
        with numpy.load(common.FOLDER / "inputs.npz") as samples:
            arrays = {name: samples[name] for name in samples.files}
        self.rows: Iterator[dict[str, Any]] = iter(
            [
                {n: a[i : i + 1] for n, a in arrays.items()}
                for i in range(min(len(a) for a in arrays.values()))
            ]
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, None at the end."""
        return next(self.rows, None)


def quantize(path: Path, made: Path) -> None:
    """Power-of-two int8, as the DPU computes."""
    numpy, vai = common.module("numpy", HOW), common.module("vai_q_onnx", HOW)
    vai.quantize_static(
        str(path),
        str(made),
        Reader(numpy),
        quant_format=vai.QuantFormat.QDQ,
        calibrate_method=vai.PowerOfTwoMethod.MinMSE,
        activation_type=vai.QuantType.QInt8,
        weight_type=vai.QuantType.QInt8,
        enable_dpu=True,
    )


def main() -> None:
    """Every model, in order."""
    found, chosen, results = common.start(__doc__.splitlines()[0])
    compiler, bench = common.find("vai_c_xir"), common.find("xdputil")
    if not compiler and not bench:
        common.tool("vai_c_xir", HOW)
    if compiler and not Path(chosen.arch).is_file():
        common.fail(
            f"--arch {chosen.arch} is no file; the container has them under /opt/vitis_ai/compiler/arch"
        )
    for name, path in common.models(found).items():
        compiled = results / f"{name}.xmodel"
        if compiler:
            quantized = results / f"{name}.int8.onnx"
            quantize(path, quantized)
            common.run(
                [compiler, "-x", quantized, "-a", chosen.arch, "-o", results, "-n", name],
                results / f"{name}.compile.log",
            )
        if bench:
            if not compiled.is_file():
                common.fail(
                    f"{compiled} is missing: compile in the container first, then copy the folder to the board"
                )
            common.run([bench, "xmodel", "-l", compiled], results / f"{name}.subgraphs.json")
            common.run(
                [bench, "benchmark", compiled, chosen.threads], results / f"{name}.benchmark.log"
            )
    common.write_json(
        results / "environment.json",
        {"compiled": bool(compiler), "timed": bool(bench), "options": vars(chosen)},
    )
    common.say(f"done; copy {results} back and run: onnxprune bench --collect FOLDER")


if __name__ == "__main__":
    main()
