"""Policies for grouped convolutions: whole groups, one position in all groups, or both by score.

    python -m benchmarks.grouped FOLDER [--target 0.7] [--json grouped.json]

Every model of FOLDER with a grouped convolution (group > 1, not depthwise) is cut to the target by
the uniform allocator on l2 scores, once per policy, at equal MACs. `explained` is the share of the
output's variance over random inputs that the cut model explains: 1 - squared error / variance,
below 0 if it is worse than the mean. Models with random weights rank policies by structure alone;
prefer trained ones. The cuts are exact under every policy (`difference`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.runner import Row, make_parser, write_results
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


def has_grouped_convolution(model: Model) -> bool:
    """Return whether a convolution has groups of more than one input channel."""
    shapes = {name: weight.shape for name, weight in model.weights.items()}
    return any(
        node.op_type == "Conv"
        and attribute(node, "group", 1) > 1
        and shapes.get(node.input[1], (0, 1))[1] > 1
        for node in model.proto.graph.node
    )


def outputs(model: Model) -> np.ndarray:
    """Return the first output over the random inputs, a row per input."""
    session = Session(model)
    rows = []
    for seed in range(INPUTS):
        values = session.run(example_feeds(model, seed))
        rows.append(next(iter(values.values())).ravel())
    return np.stack(rows).astype(np.float64)


def measure(model: Model, policy: str, target: float, expected: np.ndarray) -> Row:
    """Cut a model under a policy."""
    analysis = analyze(model, grouped=policy)
    context = Context(analysis)
    limits = Constraints(budgets={"macs": target * analysis.cost().macs})
    try:
        plan = allocate("uniform", context, CRITERIA.get("l2")(context), limits)
    except TargetError as problem:
        return {"error": str(problem).splitlines()[0]}
    pruned = cut(analysis, plan)
    error = outputs(pruned) - expected
    variance = ((expected - expected.mean()) ** 2).sum()
    before, after = analysis.cost(), analysis.cost(plan.kept)
    return {
        "explained": 1 - float((error**2).sum() / variance),
        "macs_left": after.macs / before.macs,
        "params_left": after.params / before.params,
        "difference": verify(analysis, plan, pruned).difference,
    }


def describe(row: Row) -> str:
    """Return a row as a line."""
    if "error" in row:
        return str(row["error"])
    shares = f"MACs {row['macs_left']:.1%}  params {row['params_left']:.1%}"
    return f"{shares}  explained {row['explained']:.3f}  difference {row['difference']:.1e}"


def main() -> None:
    """Print a line per model and policy, and write the results."""
    parser = make_parser(__doc__, "json")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", help="glob over file names")
    parser.add_argument("--target", type=float, default=TARGET, help="remaining share of the MACs")
    options = parser.parse_args()
    models: dict[str, dict[str, Row]] = {}
    for path in sorted(options.folder.glob(f"{options.only}.onnx")):
        model = load(path)
        if not has_grouped_convolution(model):
            continue
        expected = outputs(model)
        models[path.stem] = {}
        for policy in GROUPED:
            row = measure(model, policy, options.target, expected)
            models[path.stem][policy] = row
            print(f"{path.stem:32} {policy:9} {describe(row)}", flush=True)
        write_results(options.json, {"target": options.target, "models": models})


if __name__ == "__main__":
    main()
