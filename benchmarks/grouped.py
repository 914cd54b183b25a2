"""What to take from grouped convolutions: whole groups, the same position of each, or both as the scores say.

    python -m benchmarks.grouped FOLDER [--target 0.7] [--json grouped.json]

Every model of FOLDER with a grouped convolution (group > 1, not depthwise) is cut to the target by the uniform allocator on l2 scores, once a
policy, at equal MACs. `kept` is the share of the output's variance over random inputs that the cut model still explains (1 - squared error over
variance, over the outputs' mean; below 0 it is worse than the mean). Models with random weights rank policies by structure alone; use trained ones
where you have them. The cuts themselves are exact under every policy (`difference`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.walk import GROUPED, analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.errors import TargetError
from onnxprune.ir.io import Model, load
from onnxprune.ir.nodes import attribute
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify

TARGET = 0.7
INPUTS = 4  # random batches


def grouped_convolutions(model: Model) -> int:
    """How many convolutions have groups of more than one input."""
    shapes = {n: w.shape for n, w in model.weights.items()}
    return sum(
        n.op_type == "Conv"
        and attribute(n, "group", 1) > 1
        and shapes.get(n.input[1], (0, 1))[1] > 1
        for n in model.proto.graph.node
    )


def outputs(model: Model) -> np.ndarray:
    """First output over the random inputs, a row an input."""
    session = Session(model)
    return np.stack(
        [
            next(iter(session.run(example_feeds(model, seed)).values())).ravel()
            for seed in range(INPUTS)
        ]
    ).astype(np.float64)


def one(model: Model, policy: str, target: float, expected: np.ndarray) -> dict[str, Any]:
    """A model under a policy."""
    analysis = analyze(model, grouped=policy)
    context = Context(analysis)
    budget = Constraints(budgets={"macs": target * analysis.cost().macs})
    try:
        plan = allocate("uniform", context, CRITERIA.get("l2")(context), budget)
    except TargetError as problem:
        return {"error": str(problem).splitlines()[0]}
    pruned = cut(analysis, plan)
    error = outputs(pruned) - expected
    kept = 1 - float((error**2).sum() / ((expected - expected.mean()) ** 2).sum())
    left = analysis.cost(plan.kept)
    return {
        "kept": kept,
        "macs_left": left.macs / analysis.cost().macs,
        "params_left": left.params / analysis.cost().params,
        "difference": verify(analysis, plan, pruned).difference,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*")
    parser.add_argument("--target", type=float, default=TARGET)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    for path in sorted(options.folder.glob(f"{options.only}.onnx")):
        model = load(path)
        if not grouped_convolutions(model):
            continue
        expected = outputs(model)
        rows[path.stem] = {
            policy: one(model, policy, options.target, expected) for policy in GROUPED
        }
        for policy, row in rows[path.stem].items():
            text = (
                row.get("error")
                or f"MACs {row['macs_left']:.1%}  params {row['params_left']:.1%}  output kept {row['kept']:.3f}  differs {row['difference']:.1e}"
            )
            print(f"{path.stem:32} {policy:9} {text}", flush=True)
        if options.json:
            options.json.write_text(
                json.dumps({"target": options.target, "models": rows}, indent=1) + "\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
