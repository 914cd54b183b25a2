"""Stand-ins for vendor commands: they record arguments and write the files of the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxprune.ir.io import Model, load


def command(folder: Path, name: str, body: str) -> Path:
    """Write an executable script that appends its arguments to NAME.args, then runs `body`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    log = str(folder / (name + ".args"))
    path.write_text(
        f"#!{sys.executable}\nimport sys, json, os, pathlib, shutil, subprocess, time\n"
        f"args = sys.argv[1:]\n"
        f"with open({log!r}, 'a') as f:\n    f.write(json.dumps(args) + '\\n')\n"
        f"{body}\n"
    )
    path.chmod(0o755)
    return path


def module(folder: Path, name: str, body: str) -> None:
    """Write a Python package (with its parents) of that content."""
    package = folder
    for part in name.split("."):
        package = package / part
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
    (package / "__init__.py").write_text(body)


def run(
    bundle: Path,
    binaries: Path,
    *arguments: str,
    extra: Mapping[str, str] | None = None,
    bare: bool = False,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run run.py of a bundle with only the stubs and Python (`bare`: without its packages)."""
    environment = {"PATH": f"{binaries}{os.pathsep}/usr/bin{os.pathsep}/bin", **(extra or {})}
    interpreter = [sys.executable, "-S"] if bare else [sys.executable]
    command = [*interpreter, str(bundle / "run.py"), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, cwd=cwd
    )


def convnet(width: int = 16, hidden: int = 10) -> Model:
    """Return a seeded convolutional network: images (n, 1, 8, 8) -> logits (n, 10)."""
    generator = np.random.default_rng(width)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(
            (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32),
            name,
        )

    weights = [
        weight("w1", width, 1, 3, 3),
        weight("w2", 2 * width, width, 3, 3),
        weight("w3", hidden, 2 * width),
    ]
    nodes = [
        helper.make_node(
            "Conv", ["images", "w1"], ["a"], "conv1", pads=[1, 1, 1, 1], kernel_shape=[3, 3]
        ),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("MaxPool", ["b"], ["c"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node(
            "Conv", ["c", "w2"], ["d"], "conv2", pads=[1, 1, 1, 1], kernel_shape=[3, 3]
        ),
        helper.make_node("Relu", ["d"], ["e"], "relu2"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], "gap"),
        helper.make_node("Flatten", ["f"], ["g"], "flatten"),
        helper.make_node("Gemm", ["g", "w3"], ["logits"], "fc", transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value("images", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [value("logits", TensorProto.FLOAT, ["n", hidden])],
        weights,
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))
