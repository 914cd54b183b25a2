"""Which exported graphs can be pruned: every model of a folder, cut, checked and timed.

    python -m benchmarks.coverage FOLDER [--target 0.6] [--json FILE]
        [--compare torch-pruning onnxsim]

FOLDER holds .onnx files written by tools/export_models.py (SOURCE_NAME.onnx; the comparison with
torch-pruning builds the module of that name again). Each model runs in a process of its own on one
thread. The columns:

    difference   largest |cut - masked original| relative to the largest |masked original|
    masked       the same for the masked against the dense original: how far an error of the cut
                 could show. Layer scales of untrained networks (all below TINY) would hide it, so
                 they are replaced by random values near one
    MACs left    share after the cut to the target by the uniform allocator on l2 scores; with
                 "least" if the target is unreachable, followed by the reason
    CPU s        of analysis and cut, without loading and writing
    prunable     share of the MACs in layers with an axis that can be cut

CLAIMS lists the limits; the exit status is 1 if one does not hold. Comparisons halve every channel
axis that the other tool can prune; they give the remaining share of MACs, or the error.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.runner import ROOT, Row, make_parser, write_results

TARGET = 0.6
MAX_FRACTION = 0.9
LIMIT_CPU_S = 900
PEER_LIMIT_CPU_S = 120
TINY = 1e-4  # largest value of a layer scale that hides its branch
CLAIMS = {
    "difference": 1e-5,
    "slowest_cpu_s": 20.0,
    "median_cpu_s": 1.5,
    "median_prunable": 0.95,
    "unreachable": 3,
}
LONGEST_ERROR = 200


def measure(path: Path, target: float, allow_mixing: tuple[str, ...]) -> Row:
    """Analyze, cut and verify a model."""
    from onnxprune.allocators.allocate import allocate
    from onnxprune.allocators.base import Constraints
    from onnxprune.analysis.walk import analyze
    from onnxprune.criteria import CRITERIA
    from onnxprune.criteria.base import Context
    from onnxprune.errors import TargetError
    from onnxprune.ir.io import load
    from onnxprune.surgery.cut import cut
    from onnxprune.surgery.verify import verify

    model = randomize_scales(load(path))
    start = time.process_time()
    analysis = analyze(model, allow_mixing=allow_mixing)
    analysis_cpu_s = time.process_time() - start
    before = analysis.cost()
    context = Context(analysis)
    scores = CRITERIA.get("l2")(context) if analysis.groups else {}
    limits = Constraints(budgets={"macs": target * before.macs}, max_fraction=MAX_FRACTION)
    reason = None
    try:
        plan = allocate("uniform", context, scores, limits)
    except TargetError as problem:
        reason = str(problem)
        ratios = {"*": MAX_FRACTION} if analysis.groups else {}
        least = Constraints(ratios=ratios, max_fraction=MAX_FRACTION)
        plan = allocate("uniform", context, scores, least)
    start = time.process_time()
    pruned = cut(analysis, plan)
    cut_cpu_s = time.process_time() - start
    check = verify(analysis, plan, pruned)
    after = analysis.cost(plan.kept)
    return {
        "nodes": len(analysis.record.nodes),
        "groups": len(analysis.groups),
        "macs": before.macs,
        "params": before.params,
        "prunable": analysis.prunable_macs(),
        "macs_left": after.macs / max(before.macs, 1),
        "params_left": after.params / max(before.params, 1),
        "reason": reason,
        "difference": check.difference,
        "masked_difference": check.masked_difference,
        "exact": check.exact,
        "ok": check.ok,
        "analysis_cpu_s": analysis_cpu_s,
        "cut_cpu_s": cut_cpu_s,
    }


def randomize_scales(model: Any) -> Any:
    """Return the model with random values near one for vectors whose values are all below TINY."""
    import numpy as np

    from onnxprune.ir.weights import from_array

    copy = model.edit()
    rng = np.random.default_rng(0)
    for name, weight in model.weights.items():
        is_vector = max(weight.shape, default=1) == np.prod(weight.shape) > 1
        if not is_vector or weight.array().dtype != np.float32:
            continue
        if 0 < np.abs(weight.array()).max() < TINY:
            values = rng.uniform(0.5, 1.5, weight.shape)
            copy.weights[name] = from_array(values.astype(np.float32))
    return copy


def compare_onnxsim(path: Path) -> Row:
    """Prune with onnxsim.pruning at 0.5; our analysis counts the MACs, onnxruntime runs it."""
    import onnx
    from onnxsim.pruning import apply_structured_pruning

    from onnxprune.analysis.walk import analyze
    from onnxprune.ir.io import load
    from onnxprune.ir.runtime import Session, example_feeds

    model = onnx.load(str(path))
    start = time.process_time()
    result = apply_structured_pruning(model, 0.5)
    cpu_s = time.process_time() - start
    pruned = load(result)
    Session(pruned).run(example_feeds(pruned))
    macs = analyze(load(path)).cost().macs
    return {"macs_left": analyze(pruned).cost().macs / max(macs, 1), "cpu_s": cpu_s}


def compare_torch_pruning(path: Path) -> Row:
    """Prune the module with torch-pruning's magnitude pruner at 0.5, except its last layer."""
    import torch
    import torch_pruning

    sys.path.insert(0, str(ROOT / "tools"))
    from export_models import build, load_torchvision

    operators = load_torchvision()  # noqa: F841 (kept alive while the module is used)
    source, _, name = path.stem.partition("_")
    module, shape = build(source, name)
    example = torch.randn(shape)
    with torch.no_grad():
        out = module(example)
    width = out.shape[-1] if isinstance(out, torch.Tensor) else -1
    linear = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    ignored = [m for m in linear if m.out_features == width]
    if source == "yolo":
        ignored = [module.model[-1]]
    before, _ = torch_pruning.utils.count_ops_and_params(module, example)
    start = time.process_time()
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
    )
    pruner.step()
    cpu_s = time.process_time() - start
    after, _ = torch_pruning.utils.count_ops_and_params(module, example)
    with torch.no_grad():
        module(example)
    return {"macs_left": after / before, "cpu_s": cpu_s}


PEERS = {"torch-pruning": compare_torch_pruning, "onnxsim": compare_onnxsim}


def run_one(mode: str, path: Path, options: argparse.Namespace) -> Row:
    """Measure a model in a process of its own; {"error": ...} if it fails or takes too long."""
    limit = LIMIT_CPU_S if mode == "measure" else PEER_LIMIT_CPU_S
    command = [sys.executable, "-m", "benchmarks.coverage", str(path), "--one", mode]
    command += ["--target", str(options.target)]
    if options.allow_mixing:
        command += ["--allow-mixing", *options.allow_mixing]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5)),
    )
    if done.returncode == -signal.SIGXCPU:
        return {"error": f"takes more than {limit} CPU s"}
    if done.returncode == -signal.SIGKILL:
        return {"error": "killed, for time or memory"}
    for text in done.stdout.splitlines():
        if text.startswith('{"'):
            row: Row = json.loads(text)
            return row
    errors = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return {"error": errors[-1][:LONGEST_ERROR]}


def cpu_seconds(row: Mapping[str, Any]) -> float:
    """Return the seconds of analysis and cut."""
    return float(row["analysis_cpu_s"] + row["cut_cpu_s"])


def line(name: str, row: Mapping[str, Any]) -> str:
    """Return a row of the table."""
    if "error" in row:
        return f"{name:38} {row['error']}"
    share = f"{row['macs_left']:6.1%}" + ("" if row["reason"] is None else " least")
    text = f"{name:38} {row['difference']:8.1e} {row['masked_difference']:8.1e} {share:12}"
    text += f" {cpu_seconds(row):7.2f} {row['prunable']:8.1%}"
    for peer in PEERS:
        if peer in row:
            error = row[peer].get("error")
            text += f"  {error[:40]}" if error else f"  {row[peer]['macs_left']:13.1%}"
    if row["reason"] is not None:
        text += "\n    " + row["reason"].replace("\n", "\n    ")
    return text


def failed(row: Mapping[str, Any]) -> bool:
    """Return whether a model could not be cut, or not exactly."""
    if "error" in row or not row["ok"]:
        return True
    return bool(row["exact"] and row["difference"] > CLAIMS["difference"])


def summarize(rows: Mapping[str, Row]) -> Row:
    """Return the figures of all models and the claims that do not hold."""
    cut = [row for row in rows.values() if "error" not in row]
    seconds = [cpu_seconds(row) for row in cut] or [0.0]
    reached = [row["masked_difference"] for row in cut if not row["reason"]]
    summary: Row = {
        "models": len(rows),
        "failed": sorted(name for name, row in rows.items() if failed(row)),
        "unreachable": {n: r["macs_left"] for n, r in rows.items() if r.get("reason")},
        "largest_difference": max((row["difference"] for row in cut), default=0.0),
        "least_masked": min(reached, default=0.0),
        "slowest_cpu_s": max(seconds),
        "median_cpu_s": median(seconds),
        "median_prunable": median(row["prunable"] for row in cut) if cut else 0.0,
    }
    holds = {
        "exact": not summary["failed"],
        "unreachable": len(summary["unreachable"]) <= CLAIMS["unreachable"],
        "slowest_cpu_s": max(seconds) <= CLAIMS["slowest_cpu_s"],
        "median_cpu_s": median(seconds) < CLAIMS["median_cpu_s"],
        "median_prunable": summary["median_prunable"] >= CLAIMS["median_prunable"],
    }
    summary["not_held"] = [name for name, ok in holds.items() if not ok]
    for peer in PEERS:
        compared = [row[peer] for row in rows.values() if peer in row]
        if compared:
            pruned = sum("error" not in row and row["macs_left"] < 1 for row in compared)
            summary[peer] = {"models": len(compared), "pruned": pruned}
    return summary


def main() -> int:
    """Print a line per model and the summary, and write the results."""
    parser = make_parser(__doc__, "json")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", type=float, default=TARGET, help="remaining share of the MACs")
    parser.add_argument("--only", default="*", help="glob over file names")
    parser.add_argument("--allow-mixing", nargs="*", default=[])
    parser.add_argument("--compare", nargs="*", default=[], choices=list(PEERS))
    parser.add_argument("--one", choices=("measure", *PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if options.one == "measure":
            row = measure(options.folder, options.target, tuple(options.allow_mixing))
        else:
            row = PEERS[options.one](options.folder)
        print(json.dumps(row))
        return 0
    rows: dict[str, Row] = {}
    head = (
        f"{'model':38} {'differs':>8} {'masked':>8} {'MACs left':12} {'CPU s':>7} {'prunable':>8}"
    )
    print(head + "".join(f"  {peer:>13}" for peer in options.compare))
    for path in sorted(options.folder.glob(f"{options.only}.onnx")):
        row = run_one("measure", path, options)
        rows[path.stem] = row
        for peer in options.compare:
            row[peer] = run_one(peer, path, options)
        print(line(path.stem, row), flush=True)
        results = {"summary": summarize(rows), "models": rows}
        write_results(options.json, {"target": options.target, "claims": CLAIMS, **results})
    summary = summarize(rows)
    print(json.dumps(summary, indent=1))
    return int(bool(summary["not_held"]))


if __name__ == "__main__":
    sys.exit(main())
