"""Estimate or build the bundle's models with FINN: its Docker image by run-docker.sh, or finn-plus where that is installed.

    python3 run.py [--finn-root ~/finn] [--steps estimate]
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import common  # type: ignore[import-not-found]  # beside this file in the bundle

HOW = "clone https://github.com/Xilinx/finn and set FINN_ROOT (or --finn-root), or pip install finn-plus"


def launcher(root: str) -> tuple[str, str]:
    """("docker", run-docker.sh) or ("plus", finn)."""
    place = os.path.join(os.path.expanduser(root or os.environ.get("FINN_ROOT", "")), "run-docker.sh")
    if os.access(place, os.X_OK):
        return "docker", place
    return "plus", common.tool("finn", HOW)


def main() -> None:
    """Every model, in order."""
    found, chosen, results = common.start(__doc__.splitlines()[0])
    kind, program = launcher(chosen.finn_root)
    for name, path in common.models(found).items():
        build = results / f"{name}_build"
        build.mkdir(exist_ok=True)
        shutil.copy(str(path), str(build / "model.onnx"))
        shutil.copy(str(common.FOLDER / f"folding_{name}.json"), str(build / "folding_config.json"))
        config = json.loads((common.FOLDER / "dataflow_build_config.json").read_text(encoding="utf-8"))
        common.write_json(build / "dataflow_build_config.json", config)
        if kind == "docker":
            common.run([program, "build_dataflow", build.resolve()], results / f"{name}.log", cwd=Path(program).parent)
        else:
            common.run([program, "build", build / "dataflow_build_config.json", build / "model.onnx"], results / f"{name}.log", cwd=build)
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
