"""Estimate or build the bundle's models with FINN, by its Docker image or by finn-plus.

python3 run.py [--finn-root ~/finn] [--steps estimate]
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import common

HOW = (
    "clone https://github.com/Xilinx/finn and set FINN_ROOT (or --finn-root), or create an "
    "environment with tools/setup_finn.sh and put its bin folder on PATH"
)


def find_launcher(root: str, steps: str) -> tuple[str, str]:
    """Return how FINN is started, and the program.

    ("docker", run-docker.sh) if there is a FINN checkout, ("python", interpreter next to finn) for
    estimates without Vivado, else ("plus", finn).
    """
    checkout = os.path.expanduser(root or os.environ.get("FINN_ROOT", ""))
    launcher = os.path.join(checkout, "run-docker.sh")
    if os.access(launcher, os.X_OK):
        return "docker", launcher
    program = common.tool("finn", HOW)
    interpreter = os.path.join(os.path.dirname(program), "python3")
    without_vivado = steps == "estimate" and "XILINX_VIVADO" not in os.environ
    if without_vivado and os.access(interpreter, os.X_OK):
        return "python", interpreter
    return "plus", program


def write_build_folder(name: str, path: Path, build: Path) -> dict[str, Any]:
    """Copy model and configuration to `build` and return the configuration."""
    build.mkdir(exist_ok=True)
    # float models come with a quantized copy
    quantized = path.with_name(name + ".qonnx.onnx")
    shutil.copy(str(quantized if quantized.is_file() else path), str(build / "model.onnx"))
    shutil.copy(str(common.FOLDER / f"folding_{name}.json"), str(build / "folding_config.json"))
    shutil.copy(str(common.FOLDER / "specialize_layers_config.json"), str(build))
    config = json.loads((common.FOLDER / "dataflow_build_config.json").read_text(encoding="utf-8"))
    common.write_json(build / "dataflow_build_config.json", config)
    return config


def run_finn(kind: str, program: str, build: Path, log: Path) -> None:
    """Run the build of one folder."""
    if kind == "docker":
        command = [program, "build_dataflow", build.resolve()]
        common.run(command, log, cwd=Path(program).parent)
    elif kind == "python":
        common.run([program, common.FOLDER / "finn_estimate.py", build.resolve()], log)
    else:
        config, model = build / "dataflow_build_config.json", build / "model.onnx"
        command = [program, "build", config, model, "--batch", "--skip-dep-update"]
        common.run(command, log, cwd=build)


def main() -> None:
    """Build every model of the bundle and copy its reports to the results."""
    manifest, chosen, results = common.start(__doc__.splitlines()[0])
    kind, program = find_launcher(chosen.finn_root, chosen.steps)
    for name, path in common.models(manifest).items():
        build, log = results / f"{name}_build", results / f"{name}.log"
        config = write_build_folder(name, path, build)
        run_finn(kind, program, build, log)
        reports = sorted((build / config["output_dir"] / "report").glob("*.json"))
        if not reports:
            common.fail(f"FINN wrote no report for {name}; see {log}")
        for report in reports:
            shutil.copy(str(report), str(results / f"{name}.{report.name}"))
    common.write_json(results / "environment.json", {"finn": kind, "options": vars(chosen)})
    common.finish(results)


if __name__ == "__main__":
    main()
