"""Time and memory of analysis and cut: by peer, by version, by size of the graph, and the peak.

    python -m benchmarks.speed peers FOLDER        # resnet50 and densenet121 of FOLDER
    python -m benchmarks.speed pair CHECKOUT [MODEL.onnx ...]  # against another onnxprune
    python -m benchmarks.speed growth              # residual chains of up to 20,000 nodes
    python -m benchmarks.speed memory MODEL.onnx   # of `onnxprune optimize`, without data

peers times the same timm modules in torch-pruning. Claims: twice as fast as torch-pruning 1.6.1's
graph building and pruning on ResNet-50, ten times on DenseNet-121; seconds per node that do not
grow with the graph; a peak of at most three times the file plus 200 MB. pair runs two checkouts,
by default on graphs that it makes, and prints the median ratio of their times with its 95 %
interval (bootstrap over the pairs); the claim is at most 1.05 times the time of CHECKOUT. Every
timed run is a process of its own on one thread; the two tools alternate; loading and exporting are
not counted; times are CPU seconds, the median of the runs. torch-pruning has no counterpart of the
SHA-256 of the weights that identifies the model of a plan: the ratio is given without and with it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.runner import ONE_THREAD, ROOT, Row, make_parser, run_apart, write_results

MODELS = {"resnet50": 2.0, "densenet121": 10.0}  # how many times as fast as torch-pruning
SLOWDOWN = 1.05  # most that a version may take of the time of the one before
PAIRED_NODES, NORMS = 5000, 100  # of the graphs that pair makes
RESAMPLES = 2000
SIZES = (2500, 5000, 10000, 20000)
GROWTH = 1.5  # most growth of seconds per node over SIZES
MEMORY_FACTOR, MEMORY_EXTRA_BYTES = 3, 200 * 1024**2
NODES_PER_BLOCK = 5
CHANNELS = 8
OPTIMIZE = ["--target", "macs=60%", "--criterion", "l2", "--repair", "none"]


def halve(path: Path) -> dict[str, float]:
    """Return CPU seconds of analysis, scores and cut at half of every group."""
    from onnxprune.allocators.allocate import allocate
    from onnxprune.allocators.base import Constraints
    from onnxprune.analysis.walk import analyze
    from onnxprune.criteria import CRITERIA
    from onnxprune.criteria.base import Context
    from onnxprune.ir.io import load
    from onnxprune.surgery.cut import cut

    criterion = CRITERIA.get("l2")
    model = load(path)
    times = [time.process_time()]
    analysis = analyze(model)
    times.append(time.process_time())
    context = Context(analysis)
    _ = analysis.digest  # computed once and kept
    times.append(time.process_time())
    plan = allocate("uniform", context, criterion(context), Constraints(ratios={"*": 0.5}))
    times.append(time.process_time())
    cut(analysis, plan)
    times.append(time.process_time())
    names = ("analysis_cpu_s", "sha256_cpu_s", "plan_cpu_s", "cut_cpu_s")
    result = dict(zip(names, np.diff(times).tolist(), strict=True))
    return {**result, "nodes": float(len(analysis.record.nodes))}


def halve_in_torch(name: str) -> dict[str, float]:
    """Return CPU seconds of torch-pruning's graph building and pruning at 0.5."""
    sys.path.insert(0, str(ROOT / "tools"))
    from export_models import load_torchvision

    operators = load_torchvision()  # noqa: F841 (kept alive while the module is used)
    import timm
    import torch
    import torch_pruning

    torch.set_num_threads(1)
    module, example = timm.create_model(name, pretrained=False).eval(), torch.randn(1, 3, 224, 224)
    module(example)
    start = time.process_time()
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[module.get_classifier()],
    )
    built = time.process_time()
    pruner.step()
    return {"build_cpu_s": built - start, "prune_cpu_s": time.process_time() - built}


def chain(blocks: int) -> bytes:
    """Return a residual network of blocks of Conv, BatchNormalization, Relu, Conv and Add."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = []

    def kernel(name: str, outputs: int, inputs: int) -> str:
        values = rng.standard_normal((outputs, inputs, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def norm(name: str) -> list[str]:
        names = [f"{name}_{i}" for i in range(4)]
        for parameter in names:
            values = rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)
            weights.append(numpy_helper.from_array(values, parameter))
        return names

    make = helper.make_node
    nodes = [make("Conv", ["x", kernel("w", CHANNELS, 3)], ["t0"], name="stem")]
    for b in range(blocks):
        first, second = (kernel(f"w{b}_{i}", CHANNELS, CHANNELS) for i in (1, 2))
        nodes += [
            make("Conv", [f"t{b}", first], [f"a{b}"], name=f"conv{b}_1"),
            make("BatchNormalization", [f"a{b}", *norm(f"n{b}")], [f"b{b}"], name=f"norm{b}"),
            make("Relu", [f"b{b}"], [f"c{b}"], name=f"relu{b}"),
            make("Conv", [f"c{b}", second], [f"d{b}"], name=f"conv{b}_2"),
            make("Add", [f"t{b}", f"d{b}"], [f"t{b + 1}"], name=f"add{b}"),
        ]
    head = kernel("head", 4, CHANNELS)
    nodes.append(make("Conv", [f"t{blocks}", head], ["y"], name="head"))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 4, 4])
        for name, channels in (("x", 3), ("y", 4))
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def norms(count: int) -> bytes:
    """Return a network of products after each of which an RMSNorm is written as five nodes."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    size = 2 * CHANNELS
    weights = [numpy_helper.from_array(np.array(1e-5, np.float32), "epsilon")]
    make = helper.make_node
    nodes = []
    for k in range(count):
        kernel = rng.standard_normal((size, size)).astype(np.float32)
        scale = rng.uniform(0.5, 1.5, size).astype(np.float32)
        weights += [numpy_helper.from_array(v, f"{n}{k}") for n, v in (("w", kernel), ("g", scale))]
        nodes += [
            make("MatMul", [f"x{k}", f"w{k}"], [f"a{k}"], name=f"product{k}"),
            make("Mul", [f"a{k}", f"a{k}"], [f"b{k}"]),
            make("ReduceMean", [f"b{k}"], [f"c{k}"], axes=[-1]),
            make("Add", [f"c{k}", "epsilon"], [f"d{k}"]),
            make("Sqrt", [f"d{k}"], [f"e{k}"]),
            make("Div", [f"a{k}", f"e{k}"], [f"f{k}"]),
            make("Mul", [f"f{k}", f"g{k}"], [f"x{k + 1}"]),
        ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, size])
        for name in ("x0", f"x{count}")
    ]
    graph = helper.make_graph(nodes, "norms", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def without_digest(row: dict[str, float]) -> float:
    """Return the seconds of analysis, plan and cut."""
    return row["analysis_cpu_s"] + row["plan_cpu_s"] + row["cut_cpu_s"]


def measure_peers(folder: Path, runs: int) -> tuple[Row, bool]:
    """Time both tools in alternation; return the rows and whether the claims hold."""
    rows = {}
    for name, claim in MODELS.items():
        path = next(iter(sorted(folder.glob(f"*_{name}.onnx"))), None)
        if path is None:
            command = f"python tools/export_models.py {folder} timm:{name}"
            raise SystemExit(f"{folder} has no {name}: {command}")
        pairs = [
            (run_apart("speed", "one", str(path)), run_apart("speed", "one-torch", name))
            for _ in range(runs)
        ]
        ours = median(without_digest(row) for row, _ in pairs)
        digest = median(row["sha256_cpu_s"] for row, _ in pairs)
        theirs = median(sum(row.values()) for _, row in pairs)
        rows[name] = {
            "onnxprune_cpu_s": ours,
            "torch_pruning_cpu_s": theirs,
            "times": theirs / ours,
            "times_with_sha256": theirs / (ours + digest),
            "claim": claim,
            "runs": pairs,
        }
        text = f"onnxprune {ours:.2f} s   torch-pruning {theirs:.2f} s   {theirs / ours:.1f} times"
        more = f"{theirs / (ours + digest):.1f} with the SHA-256"
        print(f"{name:12} {text} as fast (claim: {claim:g}); {more}", flush=True)
    return rows, all(row["times"] >= row["claim"] for row in rows.values())


def measure_pair(checkout: Path, models: list[Path], runs: int) -> tuple[Row, bool]:
    """Time two checkouts in alternation; return the rows and whether the claim holds."""
    rows = {}
    for model in models:
        pairs = []
        for _ in range(runs):
            times = [
                without_digest(run_apart("speed", "one", str(model), checkout=root))
                for root in (ROOT, checkout)
            ]
            pairs.append(times)
        ratios = np.array([own / other for own, other in pairs])
        # the interval says how much of a ratio is noise of the machine
        picks = np.random.default_rng(0).integers(0, runs, (RESAMPLES, runs))
        low, high = np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))
        ratio = float(np.median(ratios))
        own, other = (median(times) for times in zip(*pairs, strict=True))
        rows[model.stem] = {"ratio": ratio, "low": low, "high": high, "pairs": pairs}
        text = f"{ratio:.3f} times the time ({low:.3f} to {high:.3f})"
        print(f"{model.stem:32} {own:.3f} s, before {other:.3f} s: {text}", flush=True)
    return rows, all(row["ratio"] <= SLOWDOWN for row in rows.values())


def make_and_measure_pair(checkout: Path, models: list[Path], runs: int) -> tuple[Row, bool]:
    """Time two checkouts on models, by default on a chain and on a graph of normalizations."""
    if models:
        return measure_pair(checkout, models, runs)
    with tempfile.TemporaryDirectory() as folder:
        graphs = {"chain": chain(PAIRED_NODES // NODES_PER_BLOCK), "norms": norms(NORMS)}
        models = [Path(folder) / f"{name}.onnx" for name in graphs]
        for path, data in zip(models, graphs.values(), strict=True):
            path.write_bytes(data)
        return measure_pair(checkout, models, runs)


def measure_growth(runs: int) -> tuple[Row, bool]:
    """Time chains of every size; return seconds per node and whether the claim holds."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            path = Path(folder) / f"{size}.onnx"
            path.write_bytes(chain(size // NODES_PER_BLOCK))
            times = [without_digest(run_apart("speed", "one", str(path))) for _ in range(runs)]
            cpu_s = median(times)
            rows[str(size)] = {"cpu_s": cpu_s, "us_per_node": cpu_s / size * 1e6}
            text = f"{cpu_s:7.2f} s {cpu_s / size * 1e6:7.0f} us per node"
            print(f"{size:6} nodes {text}", flush=True)
    first, last = (rows[str(size)]["us_per_node"] for size in (SIZES[0], SIZES[-1]))
    growth = last / first
    return {"sizes": rows, "growth": growth, "claim": GROWTH}, growth <= GROWTH


def measure_memory(path: Path) -> tuple[Row, bool]:
    """Return the peak of resident bytes of a run, its limit, and whether the claim holds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "onnxprune", "optimize", str(path)]
        done = subprocess.run(
            [*command, "-o", f"{folder}/out.onnx", *OPTIMIZE],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **ONE_THREAD},
            cwd=folder,
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = path.stat().st_size
    limit = MEMORY_FACTOR * size + MEMORY_EXTRA_BYTES
    sizes = f"file {size / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, claim {limit / 1e6:.0f} MB"
    print(f"{path.name}: {sizes}")
    return {"file_bytes": size, "peak_bytes": peak, "claim_bytes": limit}, peak <= limit


def main() -> int:
    """Measure, print and write the results; return 1 if a claim does not hold."""
    parser = make_parser(__doc__, "json")
    parser.add_argument("what", choices=("peers", "pair", "growth", "memory", "one", "one-torch"))
    parser.add_argument("path", nargs="*", help="see above")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    paths = [Path(path).resolve() for path in options.path]
    if not paths and options.what != "growth":
        parser.error(f"{options.what} takes a path")
    if options.what == "one":
        print(json.dumps(halve(paths[0])))
        return 0
    if options.what == "one-torch":
        print(json.dumps(halve_in_torch(options.path[0])))
        return 0
    if options.what == "growth":
        results, holds = measure_growth(options.runs)
    elif options.what == "memory":
        results, holds = measure_memory(paths[0])
    elif options.what == "pair":
        results, holds = make_and_measure_pair(paths[0], paths[1:], options.runs)
    else:
        results, holds = measure_peers(paths[0], options.runs)
    write_results(options.json, results)
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
