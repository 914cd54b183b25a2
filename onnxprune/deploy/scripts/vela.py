"""Convert the bundle's models to int8 TFLite by onnx2tf and compile them for an Ethos-U by Vela.

python3 run.py [--accelerator ethos-u55-128] [--tflite FOLDER]
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import common

HOW = "create the environment with tools/setup_vela.sh and put its bin folder on PATH"


def write_calibration(results: Path, inputs: dict[str, Any]) -> list[str]:
    """Write an array per model input and return onnx2tf's arguments for them.

    Arrays are channels last; their mean and deviation are given as 0 and 1.
    """
    numpy = common.module("numpy", HOW)
    arguments: list[str] = []
    with numpy.load(common.FOLDER / "inputs.npz") as samples:
        for index, name in enumerate(inputs):
            values = samples[name].astype("float32")
            path = results / f"calibration_{index}.npy"
            numpy.save(path, values.transpose(0, 2, 3, 1) if values.ndim == 4 else values)
            arguments += ["-cind", name, str(path), "0.0", "1.0"]
    return arguments


def write_check_images(results: Path) -> None:
    """Write the images of onnx2tf's self-check, which it downloads if they are missing."""
    numpy = common.module("numpy", HOW)
    path = results / "calibration_image_sample_data_20x128x128x3_float32.npy"
    if not path.is_file():
        numpy.save(path, numpy.random.default_rng(0).random((20, 128, 128, 3), numpy.float32))


def to_tflite(name: str, path: Path, inputs: dict[str, Any], results: Path) -> Path:
    """Convert a model to an int8 TFLite file and return its path."""
    converter = common.tool("onnx2tf", HOW)
    folder, log = results / f"{name}_tflite", results / f"{name}.onnx2tf.log"
    write_check_images(results)
    # onnx2tf simplifies its input file in place
    source = results.resolve() / f"{name}.onnx"
    shutil.copy(str(path), str(source))
    command = [converter, "-i", source, "-o", folder.resolve(), "-oiqt", "-qt", "per-channel"]
    command += write_calibration(results.resolve(), inputs)
    common.run(command, log, cwd=results)
    for pattern in ("*full_integer_quant.tflite", "*integer_quant.tflite"):
        # full integer first: its inputs and outputs are int8 too
        files = sorted(folder.glob(pattern))
        if files:
            return files[0]
    return common.fail(f"onnx2tf wrote no int8 file to {folder}; see {log}")


def compile_model(vela: str, name: str, source: Path, accelerator: str, results: Path) -> None:
    """Compile a TFLite file with Vela and copy its reports to the results."""
    compiled, log = results / f"{name}_vela", results / f"{name}.log"
    compiled.mkdir(exist_ok=True)
    model = compiled / f"{name}.tflite"
    shutil.copy(str(source), str(model))
    command = [vela, model, "--accelerator-config", accelerator, "--output-dir", compiled]
    common.run([*command, "--verbose-performance"], log)
    reports = {"summary": f"{name}_summary_*.csv", "layers": f"{name}_per-layer.csv"}
    for kind, pattern in reports.items():
        for report in compiled.glob(pattern):
            shutil.copy(str(report), str(results / f"{name}.{kind}.csv"))
    if not (results / f"{name}.summary.csv").is_file():
        common.fail(f"Vela wrote no summary for {name}; see {log}")


def main() -> None:
    """Convert and compile every model of the bundle."""
    manifest, chosen, results = common.start(__doc__.splitlines()[0])
    vela = common.tool("vela", HOW)
    for name, path in common.models(manifest).items():
        given = os.path.join(chosen.tflite, f"{name}.tflite") if chosen.tflite else ""
        if given and not os.path.isfile(given):
            common.fail(f"--tflite {chosen.tflite}: {given} does not exist")
        if given:
            source = Path(given)
        else:
            source = to_tflite(name, path, manifest["models"][name]["inputs"], results)
        compile_model(vela, name, source, chosen.accelerator, results)
    common.write_json(
        results / "environment.json",
        {"vela": common.output([vela, "--version"]), "options": vars(chosen)},
    )
    common.finish(results)


if __name__ == "__main__":
    main()
