"""Compile the bundle's models for an Ethos-U: int8 TFLite by onnx2tf, then Arm's Vela, which estimates cycles.

python3 run.py [--accelerator ethos-u55-128] [--tflite-original PATH]
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import common  # type: ignore[import-not-found]  # beside this file in the bundle

HOW = "make the environment with tools/setup_vela.sh and put its bin folder on PATH"


def calibration(results: Path, inputs: dict[str, Any]) -> list[str]:
    """onnx2tf's arguments for calibration: an array a model input, channels last, with mean 0 and deviation 1."""
    numpy = common.module("numpy", HOW)
    arguments: list[str] = []
    with numpy.load(common.FOLDER / "inputs.npz") as samples:
        for name in inputs:
            values = samples[name].astype("float32")
            path = results / f"calibration_{len(arguments) // 5}.npy"
            numpy.save(path, values.transpose(0, 2, 3, 1) if values.ndim == 4 else values)
            arguments += ["-cind", name, str(path), "0.0", "1.0"]
    return arguments


def own_samples(results: Path) -> None:
    """The images that onnx2tf checks itself with; where they are not in its working folder it fetches them from the internet."""
    numpy = common.module("numpy", HOW)
    path = results / "calibration_image_sample_data_20x128x128x3_float32.npy"
    if not path.is_file():
        numpy.save(path, numpy.random.default_rng(0).random((20, 128, 128, 3), numpy.float32))


def to_tflite(name: str, path: Path, inputs: dict[str, Any], results: Path) -> Path:
    """An int8 TFLite file."""
    converter = common.tool("onnx2tf", HOW)
    folder = results / f"{name}_tflite"
    own_samples(results)
    copied = (
        results.resolve() / f"{name}.onnx"
    )  # onnx2tf simplifies the file it is given where it lies
    shutil.copy(str(path), str(copied))
    command = [
        converter,
        "-i",
        copied,
        "-o",
        folder.resolve(),
        "-oiqt",
        "-qt",
        "per-channel",
        *calibration(results.resolve(), inputs),
    ]
    common.run(command, results / f"{name}.onnx2tf.log", cwd=results)
    made = sorted(folder.glob("*full_integer_quant.tflite")) or sorted(
        folder.glob("*integer_quant.tflite")
    )
    if not made:
        common.fail(
            f"onnx2tf left no int8 file in {folder}; see {results / (name + '.onnx2tf.log')}"
        )
    return made[0]


def main() -> None:
    """Every model, in order."""
    found, chosen, results = common.start(__doc__.splitlines()[0])
    vela = common.tool("vela", HOW)
    for name, path in common.models(found).items():
        given = os.path.join(chosen.tflite, f"{name}.tflite") if chosen.tflite else ""
        if given and not os.path.isfile(given):
            common.fail(f"--tflite: {given} is no file")
        source = (
            Path(given)
            if given
            else to_tflite(name, path, found["models"][name]["inputs"], results)
        )
        compiled = results / f"{name}_vela"
        compiled.mkdir(exist_ok=True)
        shutil.copy(str(source), str(compiled / f"{name}.tflite"))
        common.run(
            [
                vela,
                compiled / f"{name}.tflite",
                "--accelerator-config",
                chosen.accelerator,
                "--output-dir",
                compiled,
                "--verbose-performance",
            ],
            results / f"{name}.log",
        )
        for report, kind in (
            (f"{name}_summary_*.csv", "summary"),
            (f"{name}_per-layer.csv", "layers"),
        ):
            for csv in compiled.glob(report):
                shutil.copy(str(csv), str(results / f"{name}.{kind}.csv"))
        if not (results / f"{name}.summary.csv").is_file():
            common.fail(f"Vela left no summary for {name}; see {results / (name + '.log')}")
    common.write_json(
        results / "environment.json",
        {"vela": common.output([vela, "--version"]), "options": vars(chosen)},
    )
    common.say(f"done; copy {results} back and run: onnxprune bench --collect FOLDER")


if __name__ == "__main__":
    main()
