"""Run the bundle's models on Gemmini with onnxruntime-riscv: in spike, FireSim or hardware.

python3 run.py [--mode 1] [--runner ort_test] [--spike yes]
"""

from __future__ import annotations

import os
import re

import common

SPIKE = (
    "build Chipyard's toolchain with Gemmini's extension "
    "(scripts/build-toolchains.sh esp-tools) and source its env.sh"
)
RUNNER = (
    "build https://github.com/ucb-bar/onnxruntime-riscv (systolic_runner/imagenet_runner) "
    "and pass --runner PATH/ort_test"
)


def main() -> None:
    """Run every model of the bundle and write its cycles."""
    manifest, chosen, results = common.start(__doc__.splitlines()[0])
    runner = common.find(os.path.basename(chosen.runner), os.path.expanduser(chosen.runner))
    if not runner:
        common.tool(chosen.runner, RUNNER)
    prefix = []
    if chosen.spike == "yes":
        prefix = [common.tool("spike", SPIKE), "--extension=gemmini", "pk"]
    for name, path in common.models(manifest).items():
        quantized = path.with_name(name + ".int8.onnx")
        model = quantized if quantized.is_file() else path
        log, trace = results / f"{name}.log", results / f"{name}.trace"
        options = ["-m", model, "-x", chosen.mode, "-O", "99", "-t", trace]
        common.run([*prefix, runner, *options], log)
        text = log.read_text(encoding="utf-8", errors="replace")
        cycles = re.findall(r"(?:Done! Inference took|Total cycles:|cycles:)\s*(\d+)", text)
        if not cycles:
            last = text.strip().splitlines()[-1][:200]
            common.fail(f"{log} reports no cycles; its last line is: {last}")
        common.write_json(
            results / f"{name}.json",
            {"cycles": int(cycles[-1]), "systolic_calls": text.count("Called into systolic")},
        )
    common.write_json(
        results / "environment.json", {"spike": chosen.spike, "options": vars(chosen)}
    )
    common.finish(results)


if __name__ == "__main__":
    main()
