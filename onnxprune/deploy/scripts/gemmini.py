"""Run the bundle's models on Gemmini by onnxruntime-riscv: on spike (function), or on hardware or FireSim (cycles).

python3 run.py [--mode 1] [--runner ort_test] [--spike yes]
"""

from __future__ import annotations

import os
import re

import common  # type: ignore[import-not-found]  # beside this file in the bundle

SPIKE = "build Chipyard's toolchain with Gemmini's extension (scripts/build-toolchains.sh esp-tools) and source its env.sh"
RUNNER = "build https://github.com/ucb-bar/onnxruntime-riscv (systolic_runner/imagenet_runner) and pass --runner PATH/ort_test"


def main() -> None:
    """Every model, in order."""
    found, chosen, results = common.start(__doc__.splitlines()[0])
    runner = common.find(os.path.basename(chosen.runner), os.path.expanduser(chosen.runner))
    if not runner:
        common.tool(chosen.runner, RUNNER)
    before = (
        [common.tool("spike", SPIKE), "--extension=gemmini", "pk"] if chosen.spike == "yes" else []
    )
    for name, path in common.models(found).items():
        whole = path.with_name(name + ".int8.onnx")
        path = whole if whole.is_file() else path
        log = results / f"{name}.log"
        common.run(
            [
                *before,
                runner,
                "-m",
                path,
                "-x",
                chosen.mode,
                "-O",
                "99",
                "-t",
                results / f"{name}.trace",
            ],
            log,
        )
        text = log.read_text(encoding="utf-8", errors="replace")
        cycles = re.findall(r"(?:Done! Inference took|Total cycles:|cycles:)\s*(\d+)", text)
        if not cycles:
            common.fail(
                f"{log} names no cycles; the last line is: {text.strip().splitlines()[-1][:200]}"
            )
        common.write_json(
            results / f"{name}.json",
            {"cycles": int(cycles[-1]), "systolic_calls": text.count("Called into systolic")},
        )
    common.write_json(
        results / "environment.json", {"spike": chosen.spike, "options": vars(chosen)}
    )
    common.say(f"done; copy {results} back and run: onnxprune bench --collect FOLDER")


if __name__ == "__main__":
    main()
