"""A small trained digits network and its pruned half, through open FPGA and NPU flows: clock cycles and agreement with onnxruntime.

    tools/setup_nngen.sh && tools/setup_hls4ml.sh && tools/setup_vela.sh && tools/setup_finn.sh
    python -m benchmarks.fpga --python nngen=.venv-nngen/bin/python,hls4ml=.venv-hls4ml/bin/python,vela=.venv-vela/bin/python,finn=.venv-finn/bin/python

Needs scikit-learn and torch for the training. What has no environment is left out, and the table says so. FINN's figures are its estimates for one multiplier a layer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.deploy.handoff import collect, handoff
from onnxprune.engines.cost.systolic import estimate, preset
from onnxprune.files import write_json
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session

WIDTHS = (16, 32)
TRAINING, EPOCHS, BATCH, RATE = 1297, 30, 32, 3e-3
FLOWS = ("hls4ml", "vela", "nngen", "finn")
MODELED = ("systolic16", "dpu-b512", "ethos-u55-128")
METHOD = {"criterion": "reconstruction", "repair": "least-squares"}
PRUNED = {"channels": {"target": "macs=100%", "ratio": {"*": 0.5}}, "macs": {"target": "macs=50%"}}


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's digits: images (n, 1, 8, 8) in [0, 1] and labels, to train on; the same, 500 of them, never trained on."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images, labels = (found.images[order, None] / 16).astype(np.float32), found.target[order]
    return images[:TRAINING], labels[:TRAINING], images[TRAINING:], labels[TRAINING:]


def train(images: np.ndarray, labels: np.ndarray) -> Model:
    """Conv, pool, Conv, pool, fully connected, trained with Adam; the same weights each time on one kind of processor."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    first, second = WIDTHS
    net = nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * second, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return exported({name: value.detach().numpy() for name, value in net.state_dict().items()})


def exported(weights: Mapping[str, np.ndarray]) -> Model:
    """The network of `train` as ONNX."""
    conv, pool = (
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    )
    nodes = [
        helper.make_node("Conv", ["images", "0.weight", "0.bias"], ["a"], "conv1", **conv),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("MaxPool", ["b"], ["c"], "pool1", **pool),
        helper.make_node("Conv", ["c", "3.weight", "3.bias"], ["d"], "conv2", **conv),
        helper.make_node("Relu", ["d"], ["e"], "relu2"),
        helper.make_node("MaxPool", ["e"], ["f"], "pool2", **pool),
        helper.make_node("Flatten", ["f"], ["g"], "flatten", axis=1),
        helper.make_node("Gemm", ["g", "7.weight", "7.bias"], ["logits"], "fc", transB=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(
        nodes,
        "digits",
        [images],
        [logits],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


def accuracy(model: Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that are named right."""
    return float((Session(model).run({"images": images})["logits"].argmax(1) == labels).mean())


def run_flow(name: str, python: str, folder: Path) -> dict[str, Any]:
    """The figures of a bundle after its script ran, or why it did not."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PATH"] = f"{Path(python).absolute().parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [python, str(folder / "run.py")],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        return {
            "failed": done.stderr.strip().splitlines()[-1]
            if done.stderr.strip()
            else f"status {done.returncode}"
        }
    found = collect(folder)
    return {
        "original": dict(found.results["original"].figures),
        "pruned": dict(found.results["pruned"].figures),
        "ratios": dict(found.ratios),
    }


def measure(pythons: Mapping[str, str], how: str, samples: int, work: Path) -> dict[str, Any]:
    """Train, prune, hand over, run, collect."""
    images, labels, held_out, answers = digits()
    original = train(images, labels)
    np.savez(work / "calibration.npz", images=images[:256])
    pruned = onnxprune.optimize(
        original, data=str(work / "calibration.npz"), engine=(), round_to=1, **METHOD, **PRUNED[how]
    ).model
    rows: dict[str, Any] = {
        "top1": {
            "original": accuracy(original, held_out, answers),
            "pruned": accuracy(pruned, held_out, answers),
        },
        "flows": {},
        "modeled": {},
    }
    for name in FLOWS:
        if name not in pythons:
            rows["flows"][name] = {"failed": f"no environment given: --python {name}=..."}
            continue
        handoff(original, pruned, name, work / name, samples={"images": held_out[:samples]})
        rows["flows"][name] = run_flow(name, pythons[name], work / name)
    for name in MODELED:
        before, after = (estimate(m, preset(name)).cycles for m in (original, pruned))
        rows["modeled"][name] = {"original": before, "pruned": after, "ratio": before / after}
    rows["widths"] = {n: list(w.shape) for n, w in pruned.weights.items()}
    return rows


def table(rows: Mapping[str, Any]) -> str:
    """As text."""
    lines = [
        f"top-1 on held-out digits: {rows['top1']['original']:.3f} -> {rows['top1']['pruned']:.3f}",
        "",
    ]
    lines.append(f"{'flow':16} {'figure':18} {'original':>12} {'pruned':>12} {'ratio':>8}")
    for name, row in rows["flows"].items():
        if "failed" in row:
            lines.append(f"{name:16} {row['failed']}")
            continue
        for figure in (
            "cycles",
            "outputs_wrong",
            "argmax_agreement",
            "max_error",
            "npu_cycles",
            "sram_kib",
            "interval_cycles",
            "lut",
        ):
            if figure in row["original"]:
                ratio = (
                    f"{row['ratios'][figure]:8.2f}"
                    if "cycles" in figure and figure in row["ratios"]
                    else ""
                )
                lines.append(
                    f"{name:16} {figure:18} {row['original'][figure]:12.6g} {row['pruned'][figure]:12.6g} {ratio}"
                )
    lines += [
        f"{n:16} {'cycles (model)':18} {r['original']:12d} {r['pruned']:12d} {r['ratio']:8.2f}"
        for n, r in rows["modeled"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--python", default="", help="FLOW=INTERPRETER,...: environments that tools/setup_*.sh made"
    )
    parser.add_argument(
        "--prune",
        choices=sorted(PRUNED),
        default="channels",
        help="half of every group's channels, or half of the MACs",
    )
    parser.add_argument(
        "--samples", type=int, default=200, help="digits that the simulations are compared on"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in given.python.split(",") if pair)
    with tempfile.TemporaryDirectory(prefix="onnxprune-fpga-") as work:
        rows = measure(pythons, given.prune, given.samples, Path(work))
    print(table(rows))
    if given.json:
        write_json(given.json, {"prune": given.prune, "samples": given.samples, **rows})


if __name__ == "__main__":
    main()
