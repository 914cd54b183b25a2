"""Which exported graphs can be pruned: every model of a folder, cut to a share of its MACs, checked, timed.

    python -m benchmarks.coverage FOLDER [--target 0.6] [--compare torch-pruning onnxsim] [--json coverage.json]

FOLDER holds .onnx files, as tools/export_models.py writes them (SOURCE_NAME.onnx; the comparison with torch-pruning builds the module of
that name again). Each model runs in a process of its own on one thread. A line a model:

    difference   largest |cut - masked original| over largest |masked original|; the claim is at most 1e-5 in float32
    masked       the same for the masked original against the whole one: what the cut could have got wrong. Layer scales of untrained
                 networks (all within 1e-4 of zero) would hide it, and are drawn anew near one for this
    MACs left    share after the cut to the target by the uniform allocator on l2 scores; "least" where the target is out of reach, with the reason
    analysis+cut CPU seconds, without loading and writing
    prunable     share of the MACs in layers with an axis that can be cut

Comparisons halve every channel axis they find, as these tools are used, with the share of MACs that is left or why there is no result.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

TARGET = 0.6
MAX_FRACTION = 0.9
TIMEOUT_S = 900  # of the processor, so that other work on the machine does not count
PEER_TIMEOUT_S = 120
TINY = 1e-4  # largest value of a layer scale that hides its branch
CLAIMS = {
    "difference": 1e-5,
    "slowest_cpu_s": 20.0,
    "median_cpu_s": 1.5,
    "median_prunable": 0.95,
    "unreachable": 3,
}
PEERS = ("torch-pruning", "onnxsim")


def measure(path: Path, target: float, allow_mixing: tuple[str, ...]) -> dict[str, Any]:
    """One model, in this process."""
    from onnxprune.allocators.allocate import allocate
    from onnxprune.allocators.base import Constraints
    from onnxprune.analysis.walk import analyze
    from onnxprune.criteria import CRITERIA
    from onnxprune.criteria.base import Context
    from onnxprune.errors import TargetError
    from onnxprune.ir.io import load
    from onnxprune.surgery.cut import cut
    from onnxprune.surgery.verify import verify

    model = with_scales(load(path))
    start = time.process_time()
    analysis = analyze(model, allow_mixing=allow_mixing)
    analysis_cpu_s = time.process_time() - start
    cost = analysis.cost()
    context = Context(analysis)
    scores = CRITERIA.get("l2")(context) if analysis.groups else {}
    reason = None
    try:
        plan = allocate(
            "uniform",
            context,
            scores,
            Constraints(budgets={"macs": target * cost.macs}, max_fraction=MAX_FRACTION),
        )
    except TargetError as problem:
        reason = str(problem)
        plan = allocate(
            "uniform",
            context,
            scores,
            Constraints(
                ratios={"*": MAX_FRACTION} if analysis.groups else {}, max_fraction=MAX_FRACTION
            ),
        )
    start = time.process_time()
    pruned = cut(analysis, plan)
    cut_cpu_s = time.process_time() - start
    check = verify(analysis, plan, pruned)
    left = analysis.cost(plan.kept)
    return {
        "nodes": len(analysis.record.nodes),
        "groups": len(analysis.groups),
        "macs": cost.macs,
        "params": cost.params,
        "prunable": analysis.prunable_macs(),
        "macs_left": left.macs / max(cost.macs, 1),
        "params_left": left.params / max(cost.params, 1),
        "reason": reason,
        "difference": check.difference,
        "masked_difference": check.masked_difference,
        "exact": check.exact,
        "ok": check.ok,
        "analysis_cpu_s": analysis_cpu_s,
        "cut_cpu_s": cut_cpu_s,
    }


def with_scales(model: Any) -> Any:
    """The model with vectors of tiny numbers drawn anew: the law of the cut holds for any weights, and these would hide what it does."""
    import numpy as np

    from onnxprune.ir.weights import from_array

    copy = model.edit()
    rng = np.random.default_rng(0)
    for name, weight in model.weights.items():
        if (
            max(weight.shape, default=1) == np.prod(weight.shape) > 1
            and weight.array().dtype == np.float32
            and 0 < np.abs(weight.array()).max() < TINY
        ):
            copy.weights[name] = from_array(rng.uniform(0.5, 1.5, weight.shape).astype(np.float32))
    return copy


def compare_onnxsim(path: Path) -> dict[str, Any]:
    """onnxsim.pruning's structured pruning at 0.5, counted by our analysis and run."""
    import onnx
    from onnxsim.pruning import apply_structured_pruning

    from onnxprune.analysis.walk import analyze
    from onnxprune.ir.io import load
    from onnxprune.ir.runtime import Session, example_feeds

    model = onnx.load(str(path))
    start = time.process_time()
    found = apply_structured_pruning(model, 0.5)
    spent = time.process_time() - start
    pruned = load(found)
    Session(pruned).run(example_feeds(pruned))
    return {
        "macs_left": analyze(pruned).cost().macs / max(analyze(load(path)).cost().macs, 1),
        "cpu_s": spent,
    }


def compare_torch_pruning(path: Path) -> dict[str, Any]:
    """torch-pruning's magnitude pruner at 0.5 on the module as it comes, its last layer kept."""
    import torch
    import torch_pruning

    sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
    from export_models import build, load_torchvision

    operators = load_torchvision()  # noqa: F841
    source, _, name = path.stem.partition("_")
    module, shape = build(source, name)
    example = torch.randn(shape)
    with torch.no_grad():
        out = module(example)
    width = out.shape[-1] if isinstance(out, torch.Tensor) else -1
    ignored = [
        m for m in module.modules() if isinstance(m, torch.nn.Linear) and m.out_features == width
    ]
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
    spent = time.process_time() - start
    after, _ = torch_pruning.utils.count_ops_and_params(module, example)
    with torch.no_grad():
        module(example)
    return {"macs_left": after / before, "cpu_s": spent}


def one(mode: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A model in a process of its own; {"error": ...} where it raises or does not end."""
    limit = TIMEOUT_S if mode == "measure" else PEER_TIMEOUT_S
    command = [
        sys.executable,
        "-m",
        "benchmarks.coverage",
        str(path),
        "--one",
        mode,
        "--target",
        str(options.target),
    ]
    command += ["--allow-mixing", *options.allow_mixing] if options.allow_mixing else []
    run = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5)),
    )
    if run.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {
            "error": f"no end within {limit} s"
            if run.returncode == -signal.SIGXCPU
            else "stopped, for time or memory"
        }
    line = next((x for x in run.stdout.splitlines() if x.startswith('{"')), None)
    return (
        json.loads(line)
        if line
        else {
            "error": (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1][:200]
        }
    )


def line(name: str, found: dict[str, Any], target: float) -> str:
    """A row of the table."""
    if "error" in found:
        return f"{name:38} {found['error']}"
    reached = f"{found['macs_left']:6.1%}" + ("" if found["reason"] is None else " least")
    text = f"{name:38} {found['difference']:8.1e} {found['masked_difference']:8.1e} {reached:12} {found['analysis_cpu_s'] + found['cut_cpu_s']:7.2f} {found['prunable']:8.1%}"
    for peer in PEERS:
        if peer in found:
            text += (
                f"  {found[peer]['macs_left']:13.1%}"
                if "error" not in found[peer]
                else f"  {found[peer]['error'][:40]}"
            )
    return (
        text
        if found["reason"] is None
        else f"{text}\n    " + found["reason"].replace("\n", "\n    ")
    )


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The claims, over all models."""
    good = [r for r in rows.values() if "error" not in r]
    spent = [r["analysis_cpu_s"] + r["cut_cpu_s"] for r in good] or [0.0]
    found = {
        "models": len(rows),
        "failed": sorted(
            n
            for n, r in rows.items()
            if "error" in r
            or not r["ok"]
            or (r["exact"] and r["difference"] > CLAIMS["difference"])
        ),
        "unreachable": {n: r["macs_left"] for n, r in rows.items() if r.get("reason")},
        "largest_difference": max((r["difference"] for r in good), default=0.0),
        "least_masked": min((r["masked_difference"] for r in good if not r["reason"]), default=0.0),
        "slowest_cpu_s": max(spent),
        "median_cpu_s": median(spent),
        "median_prunable": median(r["prunable"] for r in good) if good else 0.0,
    }
    held = {
        "exact": not found["failed"],
        "unreachable": len(found["unreachable"]) <= CLAIMS["unreachable"],
        "slowest_cpu_s": max(spent) <= CLAIMS["slowest_cpu_s"],
        "median_cpu_s": median(spent) < CLAIMS["median_cpu_s"],
        "median_prunable": found["median_prunable"] >= CLAIMS["median_prunable"],
    }
    found["not_held"] = [name for name, ok in held.items() if not ok]
    for peer in PEERS:
        done = [r[peer] for r in rows.values() if peer in r]
        if done:
            found[peer] = {
                "models": len(done),
                "done": sum("error" not in d and d["macs_left"] < 1 for d in done),
            }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--target", type=float, default=TARGET, help="share of the MACs that may be left"
    )
    parser.add_argument("--only", default="*", help="glob over file names")
    parser.add_argument("--allow-mixing", nargs="*", default=[])
    parser.add_argument("--compare", nargs="*", default=[], choices=PEERS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=("measure", *PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        modes = {"torch-pruning": compare_torch_pruning, "onnxsim": compare_onnxsim}
        found = (
            measure(options.folder, options.target, tuple(options.allow_mixing))
            if options.one == "measure"
            else modes[options.one](options.folder)
        )
        print(json.dumps(found))
        return 0
    rows: dict[str, dict[str, Any]] = {}
    print(
        f"{'model':38} {'differs':>8} {'masked':>8} {'MACs left':12} {'CPU s':>7} {'prunable':>8}"
        + "".join(f"  {p:>13}" for p in options.compare)
    )
    for path in sorted(options.folder.glob(f"{options.only}.onnx")):
        rows[path.stem] = one("measure", path, options)
        for peer in options.compare:
            rows[path.stem][peer] = one(peer, path, options)
        print(line(path.stem, rows[path.stem], options.target), flush=True)
        if options.json:
            options.json.write_text(
                json.dumps(
                    {
                        "target": options.target,
                        "claims": CLAIMS,
                        "summary": summary(rows),
                        "models": rows,
                    },
                    indent=1,
                )
                + "\n"
            )
    found = summary(rows)
    print(json.dumps(found, indent=1))
    return int(bool(found["not_held"]))


if __name__ == "__main__":
    sys.exit(main())
