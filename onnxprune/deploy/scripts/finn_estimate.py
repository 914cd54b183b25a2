"""Run FINN's estimates without Vivado, by the Python modules of finn-plus.

finn-plus refuses every build on its command line if Vivado is not set up; no step of an estimate
needs it.

python3 finn_estimate.py FOLDER        FOLDER holds dataflow_build_config.json and model.onnx
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import common

HOW = "create an environment with tools/setup_finn.sh"


def main() -> None:
    """Run the steps of the configuration."""
    folder = Path(sys.argv[1]).resolve()
    os.chdir(str(folder))
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    os.environ.setdefault("FINN_BUILD_DIR", str(scratch))
    # a report quotes the path; no step of an estimate starts Vivado
    os.environ.setdefault("XILINX_VIVADO", str(scratch / "none" / "2024.2"))
    config_file = folder / "dataflow_build_config.json"
    settings = common.module("finn.interface.settings", HOW).FINNSettings
    common.module("finn.util.settings", HOW)._SETTINGS = settings.init(
        auto_set_environment_vars=True,
        automatic_dependency_updates=False,
        finn_build_dir=scratch,
        flow_config=config_file,
    )
    # Vivado's simulator: FINN imports the name and an estimate does not use it
    common.module("finn.xsi", HOW).SimEngine = object
    config_class = common.module("finn.builder.build_dataflow_config", HOW).DataflowBuildConfig
    config = config_class.construct_from(config_file)
    config.model_path = folder / "model.onnx"
    build = common.module("finn.builder.build_dataflow", HOW).build_dataflow_cfg
    raise SystemExit(build(str(folder / "model.onnx"), config))


if __name__ == "__main__":
    main()
