"""A small digits network and its pruned half in FPGA and NPU flows: cycles and agreement.

    tools/setup_nngen.sh && tools/setup_hls4ml.sh && tools/setup_vela.sh && tools/setup_finn.sh
    python -m benchmarks.fpga --python nngen=.venv-nngen/bin/python,vela=.venv-vela/bin/python

Training needs scikit-learn and torch. A flow without an environment is left out, and the table says
so. FINN's figures are its estimates for one multiplier per layer.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from benchmarks.runner import make_parser, write_results
from onnxprune.deploy.handoff import collect, handoff
from onnxprune.engines.cost.systolic import estimate, preset
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session

WIDTHS = (16, 32)
TRAINING, EPOCHS, BATCH, LR = 1297, 30, 32, 3e-3
CALIBRATION = 256
FLOWS = ("hls4ml", "vela", "nngen", "finn")
MODELED = ("systolic16", "dpu-b512", "ethos-u55-128")
METHOD = {"criterion": "reconstruction", "repair": "least-squares"}
TARGETS = {"channels": {"target": "macs=100%", "ratio": {"*": 0.5}}, "macs": {"target": "macs=50%"}}
FIGURES = (
    "cycles",
    "outputs_wrong",
    "argmax_agreement",
    "max_error",
    "npu_cycles",
    "sram_kib",
    "interval_cycles",
    "lut",
)


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images (n, 1, 8, 8) in [0, 1] and labels, then the same of 500 held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = (data.images[order, None] / 16).astype(np.float32), data.target[order]
    return images[:TRAINING], labels[:TRAINING], images[TRAINING:], labels[TRAINING:]


def train(images: np.ndarray, labels: np.ndarray) -> Model:
    """Train two convolutions with pooling and a linear layer; deterministic per processor type."""
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
    optimizer = torch.optim.Adam(net.parameters(), LR)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return export({name: value.detach().numpy() for name, value in net.state_dict().items()})


def export(weights: Mapping[str, np.ndarray]) -> Model:
    """Return the network of `train` as ONNX."""
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
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
    initializers = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "digits", [images], [logits], initializers)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


def accuracy(model: Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images that are classified correctly."""
    logits = Session(model).run({"images": images})["logits"]
    return float((logits.argmax(1) == labels).mean())


def run_flow(python: str, folder: Path) -> dict[str, Any]:
    """Run the script of a bundle; return its figures, or {"failed": ...}."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{Path(python).absolute().parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [python, str(folder / "run.py")],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        errors = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return {"failed": errors[-1]}
    collected = collect(folder)
    return {
        "original": dict(collected.results["original"].figures),
        "pruned": dict(collected.results["pruned"].figures),
        "ratios": dict(collected.ratios),
    }


def measure(pythons: Mapping[str, str], target: str, samples: int, work: Path) -> dict[str, Any]:
    """Train, prune, write bundles, run them and collect their figures."""
    images, labels, held_out, held_out_labels = digits()
    original = train(images, labels)
    data = work / "calibration.npz"
    np.savez(data, images=images[:CALIBRATION])
    pruned = onnxprune.optimize(
        original, data=str(data), engine=(), round_to=1, **METHOD, **TARGETS[target]
    ).model
    models = {"original": original, "pruned": pruned}
    flows: dict[str, Any] = {}
    for name in FLOWS:
        if name not in pythons:
            flows[name] = {"failed": f"no environment given: --python {name}=..."}
            continue
        handoff(original, pruned, name, work / name, samples={"images": held_out[:samples]})
        flows[name] = run_flow(pythons[name], work / name)
    modeled = {}
    for name in MODELED:
        before, after = (estimate(m, preset(name)).cycles for m in (original, pruned))
        modeled[name] = {"original": before, "pruned": after, "ratio": before / after}
    return {
        "top1": {name: accuracy(m, held_out, held_out_labels) for name, m in models.items()},
        "flows": flows,
        "modeled": modeled,
        "widths": {name: list(weight.shape) for name, weight in pruned.weights.items()},
    }


def table(results: Mapping[str, Any]) -> str:
    """Return the results as text."""
    top1 = results["top1"]
    lines = [f"top-1 on held-out digits: {top1['original']:.3f} -> {top1['pruned']:.3f}", ""]
    lines.append(f"{'flow':16} {'figure':18} {'original':>12} {'pruned':>12} {'ratio':>8}")
    for name, flow in results["flows"].items():
        if "failed" in flow:
            lines.append(f"{name:16} {flow['failed']}")
            continue
        for figure in FIGURES:
            if figure not in flow["original"]:
                continue
            values = f"{flow['original'][figure]:12.6g} {flow['pruned'][figure]:12.6g}"
            has_ratio = "cycles" in figure and figure in flow["ratios"]
            ratio = f"{flow['ratios'][figure]:8.2f}" if has_ratio else ""
            lines.append(f"{name:16} {figure:18} {values} {ratio}")
    for name, row in results["modeled"].items():
        values = f"{row['original']:12d} {row['pruned']:12d} {row['ratio']:8.2f}"
        lines.append(f"{name:16} {'cycles (model)':18} {values}")
    return "\n".join(lines)


def main() -> None:
    """Print the table and write the results."""
    parser = make_parser(__doc__, "json")
    parser.add_argument("--python", default="", help="FLOW=INTERPRETER,... of tools/setup_*.sh")
    parser.add_argument(
        "--prune",
        choices=sorted(TARGETS),
        default="channels",
        help="half of the channels of every group, or half of the MACs",
    )
    parser.add_argument("--samples", type=int, default=200, help="digits per simulation")
    options = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in options.python.split(",") if pair)
    with tempfile.TemporaryDirectory(prefix="onnxprune-fpga-") as work:
        results = measure(pythons, options.prune, options.samples, Path(work))
    print(table(results))
    settings = {"prune": options.prune, "samples": options.samples}
    write_results(options.json, {**settings, **results})


if __name__ == "__main__":
    main()
