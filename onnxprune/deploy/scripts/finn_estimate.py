"""FINN's estimates in a process of its own, without Vivado: by the Python names of finn-plus, which its command line lets through only beside Vivado.

python3 finn_estimate.py FOLDER        FOLDER holds dataflow_build_config.json and model.onnx
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import common  # type: ignore[import-not-found]  # beside this file in the bundle

HOW = "make an environment with tools/setup_finn.sh"


def main() -> None:
    """Run the steps of the configuration."""
    folder = Path(sys.argv[1]).resolve()
    os.chdir(str(folder))
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    os.environ.setdefault("FINN_BUILD_DIR", str(scratch))
    os.environ.setdefault(
        "XILINX_VIVADO", str(scratch / "none" / "2024.2")
    )  # it is named in a report; no step of an estimate starts it
    config_file = folder / "dataflow_build_config.json"
    settings = common.module("finn.interface.settings", HOW).FINNSettings
    common.module("finn.util.settings", HOW)._SETTINGS = settings.init(
        auto_set_environment_vars=True,
        automatic_dependency_updates=False,
        finn_build_dir=scratch,
        flow_config=config_file,
    )
    common.module(
        "finn.xsi", HOW
    ).SimEngine = object  # the simulator of Vivado, imported by name and not used
    config = common.module(
        "finn.builder.build_dataflow_config", HOW
    ).DataflowBuildConfig.construct_from(config_file)
    config.model_path = folder / "model.onnx"
    build = common.module("finn.builder.build_dataflow", HOW).build_dataflow_cfg
    raise SystemExit(build(str(folder / "model.onnx"), config))


if __name__ == "__main__":
    main()
