"""Estimate or build the bundle's models with FINN: its Docker image by run-docker.sh, or finn-plus where that is installed.

python3 run.py [--finn-root ~/finn] [--steps estimate]
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import common  # type: ignore[import-not-found]  # beside this file in the bundle

HOW = "clone https://github.com/Xilinx/finn and set FINN_ROOT (or --finn-root), or make an environment with tools/setup_finn.sh and put its bin folder on PATH"


def launcher(root: str, steps: str) -> tuple[str, str]:
    """("docker", run-docker.sh), ("plus", finn), or ("python", the interpreter beside finn) for estimates where no Vivado is set up."""
    place = os.path.join(
        os.path.expanduser(root or os.environ.get("FINN_ROOT", "")), "run-docker.sh"
    )
    if os.access(place, os.X_OK):
        return "docker", place
    program = common.tool("finn", HOW)
    interpreter = os.path.join(os.path.dirname(program), "python3")
    if (
        steps == "estimate"
        and "XILINX_VIVADO" not in os.environ
        and os.access(interpreter, os.X_OK)
    ):
        return "python", interpreter
    return "plus", program


def main() -> None:
    """Every model, in order."""
    found, chosen, results = common.start(__doc__.splitlines()[0])
    kind, program = launcher(chosen.finn_root, chosen.steps)
    for name, path in common.models(found).items():
        build = results / f"{name}_build"
        build.mkdir(exist_ok=True)
        rounded = path.with_name(name + ".qonnx.onnx")
        shutil.copy(str(rounded if rounded.is_file() else path), str(build / "model.onnx"))
        shutil.copy(str(common.FOLDER / f"folding_{name}.json"), str(build / "folding_config.json"))
        shutil.copy(str(common.FOLDER / "specialize_layers_config.json"), str(build))
        config = json.loads(
            (common.FOLDER / "dataflow_build_config.json").read_text(encoding="utf-8")
        )
        common.write_json(build / "dataflow_build_config.json", config)
        if kind == "docker":
            common.run(
                [program, "build_dataflow", build.resolve()],
                results / f"{name}.log",
                cwd=Path(program).parent,
            )
        elif kind == "python":
            common.run(
                [program, common.FOLDER / "finn_estimate.py", build.resolve()],
                results / f"{name}.log",
            )
        else:
            command = [
                program,
                "build",
                build / "dataflow_build_config.json",
                build / "model.onnx",
                "--batch",
                "--skip-dep-update",
            ]
            common.run(command, results / f"{name}.log", cwd=build)
        made = 0
        for report in sorted((build / config["output_dir"] / "report").glob("*.json")):
            shutil.copy(str(report), str(results / f"{name}.{report.name}"))
            made += 1
        if not made:
            common.fail(f"FINN left no report for {name}; see {results / (name + '.log')}")
    common.write_json(results / "environment.json", {"finn": kind, "options": vars(chosen)})
    common.say(f"done; copy {results} back and run: onnxprune bench --collect FOLDER")


if __name__ == "__main__":
    main()
