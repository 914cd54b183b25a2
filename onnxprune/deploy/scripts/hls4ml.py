"""Simulate the bundle's models with hls4ml's C++; synthesize them if Vitis HLS is installed.

python3 run.py [--precision "fixed<16,6>"] [--reuse 1] [--synthesize auto]
"""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import common

HOW = "create the environment with tools/setup_hls4ml.sh and run this script with its python"
CHILD = "--only"  # each model runs in its own process: generated code can crash it


def to_channels_last(path: Path) -> Any:
    """Return the graph as hls4ml reads it: cleaned, inputs channels last, Gemm as MatMul."""
    wrapper = common.module("qonnx.core.modelwrapper", HOW).ModelWrapper(str(path))
    clean = common.module("qonnx.util.cleanup", HOW).cleanup_model
    last = common.module("qonnx.transformation.channels_last", HOW).ConvertToChannelsLastAndClean
    matmul = common.module("qonnx.transformation.gemm_to_matmul", HOW).GemmToMatMul
    model = clean(wrapper)
    if len(model.get_tensor_shape(model.graph.input[0].name)) == 4:
        model = model.transform(last(make_input_channels_last=True))
    return clean(model.transform(matmul()))


def configure(name: str, model: Any, hls4ml: Any, chosen: Namespace) -> dict[str, Any]:
    """Return hls4ml's configuration per layer, updated with hls4ml.json and the options."""
    config: dict[str, Any] = hls4ml.utils.config_from_onnx_model(
        model,
        granularity="name",
        backend=chosen.backend,
        default_precision=chosen.precision,
        default_reuse_factor=int(chosen.reuse),
    )
    changes = json.loads((common.FOLDER / "hls4ml.json").read_text(encoding="utf-8"))
    config.setdefault("Model", {}).update(changes.get("Model", {}))
    for layer, values in changes.get("LayerName", {}).get(name, {}).items():
        if layer not in config["LayerName"]:
            known = ", ".join(config["LayerName"])
            common.fail(f"hls4ml.json names unknown layer {layer!r}; layers of {name}: {known}")
        config["LayerName"][layer].update(values)
    config["Model"].update({"ReuseFactor": int(chosen.reuse), "Strategy": chosen.strategy})
    return config


def convert(name: str, path: Path, chosen: Namespace, project: Path) -> Any:
    """Return the model as a compiled hls4ml project."""
    hls4ml = common.module("hls4ml", HOW)
    model = to_channels_last(path)
    converted = hls4ml.converters.convert_from_onnx_model(
        model,
        output_dir=str(project),
        project_name=name,
        io_type=chosen.io,
        backend=chosen.backend,
        part=chosen.part,
        clock_period=float(chosen.clock_ns),
        hls_config=configure(name, model, hls4ml, chosen),
    )
    converted.compile()
    return converted


def compare(name: str, converted: Any) -> dict[str, Any]:
    """Return the errors of the simulated outputs against onnxruntime's."""
    numpy = common.module("numpy", HOW)
    with numpy.load(common.FOLDER / "inputs.npz") as samples:
        (values,) = (samples[k] for k in samples.files)
    with numpy.load(common.FOLDER / f"expected_{name}.npz") as arrays:
        expected = arrays["output_0"]
    expected = expected.reshape(len(expected), -1)
    # inputs of the converted graph are channels last
    values = values.transpose(0, 2, 3, 1) if values.ndim == 4 else values
    outputs = converted.predict(numpy.ascontiguousarray(values, dtype=numpy.float32))
    actual = numpy.asarray(outputs).reshape(len(expected), -1)
    return {
        "argmax_agreement": float((actual.argmax(-1) == expected.argmax(-1)).mean()),
        "max_error": float(numpy.abs(actual - expected).max()),
        "max_output": float(numpy.abs(expected).max()),
        "samples": len(expected),
    }


def run_one(name: str, path: Path, chosen: Namespace, results: Path) -> None:
    """Convert, compile and compare one model with onnxruntime; synthesize it if requested."""
    project = results / f"{name}_project"
    converted = convert(name, path, chosen, project)
    common.write_json(results / f"{name}.json", compare(name, converted))
    if chosen.synthesize == "yes" or (chosen.synthesize == "auto" and common.find("vitis_hls")):
        common.tool(
            "vitis_hls",
            "install AMD Vitis HLS and source its settings64.sh, or pass --synthesize no",
        )
        converted.build(csim=False, synth=True)
        for report in project.rglob(f"{name}_csynth.xml"):
            shutil.copy(str(report), str(results / f"{name}.csynth.xml"))


def main() -> None:
    """Run every model of the bundle in its own process."""
    if CHILD in sys.argv:
        at = sys.argv.index(CHILD)
        only = sys.argv[at + 1]
        # the other arguments are the options
        del sys.argv[at : at + 2]
        manifest, chosen, results = common.start(__doc__.splitlines()[0])
        run_one(only, common.models(manifest)[only], chosen, results)
        return
    manifest, chosen, results = common.start(__doc__.splitlines()[0])
    hls4ml = common.module("hls4ml", HOW)
    common.module("qonnx", HOW)
    common.tool("g++", "install a C++ compiler (sudo apt-get install g++)")
    for name in common.models(manifest):
        common.run(
            [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], CHILD, name],
            results / f"{name}.log",
        )
    common.write_json(
        results / "environment.json",
        {"hls4ml": getattr(hls4ml, "__version__", ""), "options": vars(chosen)},
    )
    common.finish(results)


if __name__ == "__main__":
    main()
