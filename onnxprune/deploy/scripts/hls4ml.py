"""Simulate the bundle's models with hls4ml's C++ on this machine, and synthesize them where Vitis HLS is installed.

python3 run.py [--precision "fixed<16,6>"] [--reuse 1] [--synthesize auto]
"""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import common  # type: ignore[import-not-found]  # beside this file in the bundle

HOW = "make the environment with tools/setup_hls4ml.sh, and run this script with its python"
CHILD = "--only"  # a model's simulation runs in a process of its own: generated code can end it


def channels_last(path: Path) -> Any:
    """The graph as hls4ml reads it: cleaned, channels last with the input's layout changed too, Gemm as MatMul."""
    wrapper = common.module("qonnx.core.modelwrapper", HOW).ModelWrapper(str(path))
    clean = common.module("qonnx.util.cleanup", HOW).cleanup_model
    last = common.module("qonnx.transformation.channels_last", HOW).ConvertToChannelsLastAndClean
    matmul = common.module("qonnx.transformation.gemm_to_matmul", HOW).GemmToMatMul
    model = clean(wrapper)
    if len(model.get_tensor_shape(model.graph.input[0].name)) == 4:
        model = model.transform(last(make_input_channels_last=True))
    return clean(model.transform(matmul()))


def configured(name: str, model: Any, hls4ml: Any, chosen: Namespace) -> dict[str, Any]:
    """hls4ml's own configuration by layer with the bundle's choices in it."""
    config: dict[str, Any] = hls4ml.utils.config_from_onnx_model(
        model,
        granularity="name",
        backend=chosen.backend,
        default_precision=chosen.precision,
        default_reuse_factor=int(chosen.reuse),
    )
    asked = json.loads((common.FOLDER / "hls4ml.json").read_text(encoding="utf-8"))
    config.setdefault("Model", {}).update(asked.get("Model", {}))
    for layer, values in asked.get("LayerName", {}).get(name, {}).items():
        if layer not in config["LayerName"]:
            common.fail(
                f"hls4ml.json names layer {layer!r}; {name} has {', '.join(config['LayerName'])}"
            )
        config["LayerName"][layer].update(values)
    config["Model"].update({"ReuseFactor": int(chosen.reuse), "Strategy": chosen.strategy})
    return config


def one(name: str, path: Path, chosen: Namespace, results: Path) -> None:
    """Convert, compile, compare with onnxruntime; synthesize where that is possible."""
    numpy, hls4ml = common.module("numpy", HOW), common.module("hls4ml", HOW)
    model = channels_last(path)
    project = results / f"{name}_project"
    converted = hls4ml.converters.convert_from_onnx_model(
        model,
        output_dir=str(project),
        project_name=name,
        io_type=chosen.io,
        backend=chosen.backend,
        part=chosen.part,
        clock_period=float(chosen.clock_ns),
        hls_config=configured(name, model, hls4ml, chosen),
    )
    converted.compile()
    with numpy.load(common.FOLDER / "inputs.npz") as samples:
        (values,) = (samples[k] for k in samples.files)
    with numpy.load(common.FOLDER / f"expected_{name}.npz") as expected:
        wanted = expected["output_0"]
    values = values.transpose(0, 2, 3, 1) if values.ndim == 4 else values
    made = numpy.asarray(
        converted.predict(numpy.ascontiguousarray(values, dtype=numpy.float32))
    ).reshape(len(wanted), -1)
    wanted = wanted.reshape(len(wanted), -1)
    report = {
        "argmax_agreement": float((made.argmax(-1) == wanted.argmax(-1)).mean()),
        "max_error": float(numpy.abs(made - wanted).max()),
        "max_output": float(numpy.abs(wanted).max()),
        "samples": len(wanted),
    }
    common.write_json(results / f"{name}.json", report)
    if chosen.synthesize == "yes" or (chosen.synthesize == "auto" and common.find("vitis_hls")):
        common.tool(
            "vitis_hls",
            "install AMD Vitis HLS and source its settings64.sh, or pass --synthesize no",
        )
        converted.build(csim=False, synth=True)
        for found in project.rglob(f"{name}_csynth.xml"):
            shutil.copy(str(found), str(results / f"{name}.csynth.xml"))


def main() -> None:
    """Every model in a process of its own."""
    if CHILD in sys.argv:
        at = sys.argv.index(CHILD)
        only = sys.argv[at + 1]
        del sys.argv[at : at + 2]
        found, chosen, results = common.start(__doc__.splitlines()[0])
        one(only, common.models(found)[only], chosen, results)
        return
    found, chosen, results = common.start(__doc__.splitlines()[0])
    hls4ml = common.module("hls4ml", HOW)
    common.module("qonnx", HOW)
    common.tool("g++", "install a C++ compiler (sudo apt-get install g++)")
    for name in common.models(found):
        common.run(
            [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], CHILD, name],
            results / f"{name}.log",
        )
    common.write_json(
        results / "environment.json",
        {"hls4ml": getattr(hls4ml, "__version__", ""), "options": vars(chosen)},
    )
    common.say(f"done; copy {results} back and run: onnxprune bench --collect FOLDER")


if __name__ == "__main__":
    main()
