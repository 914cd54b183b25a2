"""What analysis and cut cost: against torch-pruning, with growing graphs, and in memory.

    python -m benchmarks.speed peers FOLDER        # resnet50 and densenet121 of FOLDER, beside the same timm modules in torch-pruning
    python -m benchmarks.speed growth              # synthetic residual chains of up to 20,000 nodes
    python -m benchmarks.speed memory MODEL.onnx   # peak of `onnxprune optimize --criterion l2 --repair none`

Claims: twice as fast as torch-pruning 1.6.1's graph building and pruning on ResNet-50, ten times on DenseNet-121; seconds a node that do not
grow with the graph; at most three times the file plus 200 MB. Every timed run is a process of its own on one thread; the two tools take turns;
loading and exporting are not counted; CPU seconds, median of the runs. The sha256 of the weights by which a plan knows its model has no
counterpart in torch-pruning: the ratio is given without and with it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

MODELS = {"resnet50": 2.0, "densenet121": 10.0}  # times as fast as torch-pruning
SIZES = (2500, 5000, 10000, 20000)
GROWTH = 1.5  # most that the seconds a node may grow over SIZES
MEMORY_FACTOR, MEMORY_EXTRA_BYTES = 3, 200 * 1024**2
NODES_A_BLOCK = 5
CHANNELS = 8
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def half(path: Path) -> dict[str, float]:
    """CPU seconds of analysis, scores and cut at half of every group."""
    from onnxprune.allocators.allocate import allocate
    from onnxprune.allocators.base import Constraints
    from onnxprune.analysis.walk import analyze
    from onnxprune.criteria import CRITERIA
    from onnxprune.criteria.base import Context
    from onnxprune.ir.io import load
    from onnxprune.surgery.cut import cut

    criterion = CRITERIA.get("l2")
    model = load(path)
    marks = [time.process_time()]
    analysis = analyze(model)
    marks.append(time.process_time())
    context = Context(analysis)
    analysis.digest  # noqa: B018 - kept from here on
    marks.append(time.process_time())
    plan = allocate("uniform", context, criterion(context), Constraints(ratios={"*": 0.5}))
    marks.append(time.process_time())
    cut(analysis, plan)
    marks.append(time.process_time())
    names = ("analysis_cpu_s", "sha256_cpu_s", "plan_cpu_s", "cut_cpu_s")
    return {
        **{n: after - before for n, before, after in zip(names, marks, marks[1:], strict=False)},
        "nodes": float(len(analysis.record.nodes)),
    }


def half_torch(name: str) -> dict[str, float]:
    """CPU seconds of torch-pruning's graph building and of its pruning at 0.5."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
    from export_models import load_torchvision

    operators = load_torchvision()  # noqa: F841
    import timm
    import torch
    import torch_pruning

    torch.set_num_threads(1)
    module, example = timm.create_model(name, pretrained=False).eval(), torch.randn(1, 3, 224, 224)
    module(example)
    start = time.process_time()
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example,
        importance=importance,
        pruning_ratio=0.5,
        ignored_layers=[module.get_classifier()],
    )
    built = time.process_time()
    pruner.step()
    return {"build_cpu_s": built - start, "prune_cpu_s": time.process_time() - built}


def chain(blocks: int) -> bytes:
    """A residual network of Conv, BatchNormalization, Relu, Conv, Add blocks; five nodes a block."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = (
        [helper.make_node("Conv", ["x", "w"], ["t0"], name="stem")],
        [numpy_helper.from_array(rng.standard_normal((CHANNELS, 3, 1, 1)).astype(np.float32), "w")],
    )
    for b in range(blocks):
        for i in (1, 2):
            weights.append(
                numpy_helper.from_array(
                    rng.standard_normal((CHANNELS, CHANNELS, 1, 1)).astype(np.float32), f"w{b}_{i}"
                )
            )
        weights += [
            numpy_helper.from_array(rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32), f"n{b}_{i}")
            for i in range(4)
        ]
        nodes += [
            helper.make_node("Conv", [f"t{b}", f"w{b}_1"], [f"a{b}"], name=f"conv{b}_1"),
            helper.make_node(
                "BatchNormalization",
                [f"a{b}", *(f"n{b}_{i}" for i in range(4))],
                [f"b{b}"],
                name=f"norm{b}",
            ),
            helper.make_node("Relu", [f"b{b}"], [f"c{b}"], name=f"relu{b}"),
            helper.make_node("Conv", [f"c{b}", f"w{b}_2"], [f"d{b}"], name=f"conv{b}_2"),
            helper.make_node("Add", [f"t{b}", f"d{b}"], [f"t{b + 1}"], name=f"add{b}"),
        ]
    weights.append(
        numpy_helper.from_array(rng.standard_normal((4, CHANNELS, 1, 1)).astype(np.float32), "head")
    )
    nodes.append(helper.make_node("Conv", [f"t{blocks}", "head"], ["y"], name="head"))
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 4, 4])
        for n, c in (("x", 3), ("y", 4))
    ]
    return bytes(
        helper.make_model(
            helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        ).SerializeToString()
    )


def apart(*arguments: str) -> dict[str, float]:
    """What a process of its own prints."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **ONE_THREAD},
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def peers(folder: Path, runs: int) -> dict[str, Any]:
    """Both tools in turns."""
    rows = {}
    for name, claim in MODELS.items():
        path = next(iter(sorted(folder.glob(f"*_{name}.onnx"))), None)
        if path is None:
            raise SystemExit(
                f"{folder} has no {name}: python tools/export_models.py {folder} timm:{name}"
            )
        pairs = [(apart("one", str(path)), apart("one-torch", name)) for _ in range(runs)]
        ours = median(p["analysis_cpu_s"] + p["plan_cpu_s"] + p["cut_cpu_s"] for p, _ in pairs)
        identity = median(p["sha256_cpu_s"] for p, _ in pairs)
        theirs = median(sum(t.values()) for _, t in pairs)
        rows[name] = {
            "onnxprune_cpu_s": ours,
            "torch_pruning_cpu_s": theirs,
            "times": theirs / ours,
            "times_with_sha256": theirs / (ours + identity),
            "claim": claim,
            "runs": pairs,
        }
        print(
            f"{name:12} onnxprune {ours:.2f} s   torch-pruning {theirs:.2f} s   {theirs / ours:.1f} times as fast (claim: {claim:g}); {theirs / (ours + identity):.1f} with the sha256",
            flush=True,
        )
    return rows


def growth(runs: int) -> dict[str, Any]:
    """Seconds a node at every size."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            path = Path(folder) / f"{size}.onnx"
            path.write_bytes(chain(size // NODES_A_BLOCK))
            spent = median(
                r["analysis_cpu_s"] + r["plan_cpu_s"] + r["cut_cpu_s"]
                for r in (apart("one", str(path)) for _ in range(runs))
            )
            rows[str(size)] = {"cpu_s": spent, "us_a_node": spent / size * 1e6}
            print(f"{size:6} nodes {spent:7.2f} s {spent / size * 1e6:7.0f} us a node", flush=True)
    first, last = rows[str(SIZES[0])]["us_a_node"], rows[str(SIZES[-1])]["us_a_node"]
    return {"sizes": rows, "growth": last / first, "claim": GROWTH}


def memory(path: Path) -> dict[str, float]:
    """Peak resident bytes of the command, beside what may be."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "-m",
            "onnxprune",
            "optimize",
            str(path),
            "-o",
            f"{folder}/out.onnx",
            "--target",
            "macs=60%",
            "--criterion",
            "l2",
            "--repair",
            "none",
        ]
        run = subprocess.run(
            [sys.executable, *command],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **ONE_THREAD},
            cwd=folder,
        )
    if run.returncode:
        raise SystemExit(run.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = path.stat().st_size
    limit = MEMORY_FACTOR * size + MEMORY_EXTRA_BYTES
    print(
        f"{path.name}: file {size / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, claim {limit / 1e6:.0f} MB"
    )
    return {"file_bytes": size, "peak_bytes": peak, "claim_bytes": limit}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("peers", "growth", "memory", "one", "one-torch"))
    parser.add_argument("path", nargs="?", default="")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: Mapping[str, Any]
    if options.what in ("one", "one-torch"):
        print(
            json.dumps(
                half(Path(options.path)) if options.what == "one" else half_torch(options.path)
            )
        )
        return 0
    if options.what == "growth":
        found = growth(options.runs)
        met = found["growth"] <= found["claim"]
    elif options.what == "memory":
        found = memory(Path(options.path).resolve())
        met = found["peak_bytes"] <= found["claim_bytes"]
    else:
        found = peers(Path(options.path), options.runs)
        met = all(r["times"] >= r["claim"] for r in found.values())
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
