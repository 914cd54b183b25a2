"""The node tests of the ONNX standard, as they are and between products whose channels are cut.

    python -m benchmarks.backend_tests [--only NAME] [--seeds 3] [--json FILE]

Each test of package onnx is a model of one operator with inputs. Two checks:

    same      what onnxruntime runs has equal outputs after a cut by an empty plan ("rounded":
              half-precision constants, which onnxruntime computes in float32, are folded)
    cut       every axis of each float input comes from a product and every axis of each output
              goes to one; about a third of each group is cut. The cut model equals the masked
              one, or no channel can be cut and every frozen axis has a reason
    first     the same with products for the first input alone; the others are weights

The last line counts the results. The exit status is 1 if a check failed.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.backend.test.case import node as cases

from benchmarks.runner import Row, make_parser
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.errors import ModelError
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.surgery.compare import relative_difference
from onnxprune.surgery.cut import cut
from onnxprune.surgery.random_nodes import random_nodes
from onnxprune.surgery.verify import verify
from onnxprune.types import Plan

SHARE = 1 / 3  # of the channels of each group that is cut
PERTURBATION = 0.2  # of the identity: keeps inputs near the domain of the operator
MOST_AXES = 6  # of a tensor that is multiplied along each
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
CHECKS = ("same", "cut", "first")
PRODUCTS_OPSET = 13  # of the products around an operator of another domain
HALF_ROUNDING = 2**-9  # relative: two units in the last place of float16
FAILED = ("failed", "differs")
_NOT_AS_DEFINED = "is not used as its definition says"


@dataclass(frozen=True)
class Test:
    """A node test: a model and the arrays of its inputs."""

    name: str
    model: ModelProto
    inputs: Sequence[Any]


def load_tests(modules: Sequence[str] | None = None) -> Iterator[Test]:
    """Yield the node tests of all modules of onnx, or of some ("topk")."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # tests overflow and divide by zero on purpose
        if modules is None:
            found = cases.collect_testcases()
        else:
            for name in modules:  # importing a module appends its tests
                importlib.import_module(f"onnx.backend.test.case.node.{name}")
            found = [c for c in cases._NodeTestCases if _operator(c.model) in modules]
    for case in found:
        yield Test(case.name, case.model, case.data_sets[0][0])


def _operator(model: ModelProto) -> str:
    """Return the operator of a test, or that of the last node, as modules of onnx are named."""
    return str(model.graph.node[-1].op_type).lower()


def measure(test: Test, seeds: int) -> Row:
    """Return the result of both checks."""
    return {
        "same": compare_uncut(test),
        "cut": compare_between_products(test, seeds),
        "first": compare_between_products(test, seeds, first=True),
    }


def compare_uncut(test: Test) -> str:
    """Compare the outputs before and after a cut that removes nothing."""
    try:
        feeds = {
            i.name: np.asarray(v)
            for i, v in zip(test.model.graph.input, test.inputs, strict=True)
            if isinstance(v, np.ndarray | np.generic)
        }
        if len(feeds) < len(test.inputs):
            return "sequence or optional input"
        expected = Session(load(test.model), optimize=False).run(feeds)
    except (ModelError, ValueError):
        return "not run by onnxruntime"
    try:
        analysis = analyze(load(test.model))
        actual = Session(cut(analysis, analysis.plan({})), optimize=False).run(feeds)
    except Exception as problem:
        return _describe(problem)
    same = all(_equal(actual[n], expected[n]) for n in expected)
    # two runs of a random operator differ by themselves
    if same or random_nodes(analysis.model):
        return "equal"
    halves = all(np.asarray(v).dtype == np.float16 for v in expected.values())
    close = max(relative_difference(actual[n], expected[n]) for n in expected) <= HALF_ROUNDING
    return "rounded" if halves and close else "differs"


def _describe(problem: Exception) -> str:
    """Return the result of a check that raised an error."""
    if isinstance(problem, ModelError) and problem.code == "opset-unsupported":
        return f"refused: {problem}"
    return f"failed: {type(problem).__name__}: {problem}"


def _equal(a: Any, b: Any) -> bool:
    """Return whether two outputs are equal, NaN at equal places included."""
    if isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    x, y = np.asarray(a), np.asarray(b)
    return np.array_equal(x, y, equal_nan=x.dtype.kind in "fc")


def compare_between_products(test: Test, seeds: int, first: bool = False) -> str:
    """Cut channels of products around the operator; compare with the masked model."""
    wrapped = wrap(test, first)
    if wrapped is None:
        return "no float input"
    model, feeds = wrapped
    try:
        loaded = load(model)
        Session(loaded, optimize=False).run(feeds)
    except (ModelError, ValueError):
        return "not run by onnxruntime"
    try:
        return _compare_cut(loaded, feeds, seeds)
    except Exception as problem:
        return _describe(problem)


def _compare_cut(model: Model, feeds: dict[str, np.ndarray], seeds: int) -> str:
    """Return "cut", or why nothing can be; "failed: ..." if the cut is wrong."""
    analysis = analyze(model)
    reasons = [f.reason for f in analysis.frozen]
    defect = next((r for r in reasons if not r or _NOT_AS_DEFINED in r), None)
    if defect is not None:
        return f"failed: the reason is {defect!r}"
    if not any(g.size > 1 for g in analysis.groups):
        own = [f.reason for f in analysis.frozen if f.op not in ("", "MatMul")]
        return "frozen: " + (own or reasons or ["all axes have length 1"])[0]
    for seed in range(seeds):
        plan = _third(analysis, np.random.default_rng(seed))
        with np.errstate(all="ignore"):
            result = verify(analysis, plan, cut(analysis, plan), feeds)
        if not result.ok:
            return f"failed: {result.difference:.2g} > {result.tolerance:.2g}, {dict(plan.kept)}"
    return "cut"


def _third(analysis: Analysis, rng: np.random.Generator) -> Plan:
    """Return a plan that cuts about a third of each group, and keeps every axis."""
    kept = {}
    for group in analysis.groups:
        if group.size > 1:
            count = max(1, round(group.size * (1 - SHARE)))
            chosen = rng.choice(group.size, min(count, group.size - 1), replace=False)
            kept[group.name] = tuple(sorted(chosen.tolist()))
    return analysis.plan(kept)


def wrap(test: Test, first: bool = False) -> tuple[ModelProto, dict[str, np.ndarray]] | None:
    """Return the model between products, and its inputs; None without a float input with axes.

    Inputs that are not floats become constants, as exporters write them; with `first`, all
    inputs but the first.
    """
    model = ModelProto()
    model.CopyFrom(test.model)
    graph, rng = model.graph, np.random.default_rng(0)
    weights: list[TensorProto] = []
    before: list[NodeProto] = []
    feeds: dict[str, np.ndarray] = {}
    for info, value in zip(list(graph.input), test.inputs, strict=True):
        if not isinstance(value, np.ndarray | np.generic) or np.asarray(value).dtype.kind in "OUS":
            return None
        array = np.asarray(value)
        wide = info.type.tensor_type.elem_type in FLOATS and 0 < array.ndim <= MOST_AXES
        if wide and array.size and not (first and feeds):
            source = f"{info.name}_data"
            before += _products(source, info.name, array.shape, array.dtype, weights, rng)
            feeds[source] = array
            info.name = source
        else:
            weights.append(numpy_helper.from_array(array, info.name))
            graph.input.remove(info)
    if not feeds:
        return None
    after = _consume_outputs(model, weights, rng)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    if all(o.domain not in ("", "ai.onnx") for o in model.opset_import):
        model.opset_import.add(version=PRODUCTS_OPSET)
    model.ir_version = max(model.ir_version, 4)  # initializers that are no inputs
    return model, feeds


def _products(
    source: str,
    target: str,
    shape: Sequence[int],
    dtype: np.dtype,
    weights: list[TensorProto],
    rng: np.random.Generator,
) -> list[NodeProto]:
    """Return one product per axis, in sequence, with square weights near the identity."""
    nodes = []
    for axis, size in enumerate(shape):
        name = f"{target}_w{axis}"
        noise = rng.uniform(0, PERTURBATION / max(size, 1), (size, size))
        weights.append(numpy_helper.from_array((np.eye(size) + noise).astype(dtype), name))
        # the axis becomes the last, and goes back after the product
        order = [i for i in range(len(shape)) if i != axis] + [axis]
        back = np.argsort(order).tolist()
        out = target if axis == len(shape) - 1 else f"{target}_{axis}"
        moved = [f"{out}_{step}" for step in ("last", "product")]
        nodes += [
            helper.make_node("Transpose", [source], moved[:1], moved[0], perm=order),
            helper.make_node("MatMul", [moved[0], name], moved[1:], moved[1]),
            helper.make_node("Transpose", moved[1:], [out], out, perm=back),
        ]
        source = out
    return nodes


def _consume_outputs(
    model: ModelProto, weights: list[TensorProto], rng: np.random.Generator
) -> list[NodeProto]:
    """Replace each output by its products along all axes; return the nodes."""
    nodes: list[NodeProto] = []
    for info in model.graph.output:
        kind = info.type.tensor_type
        shape = [d.dim_value for d in kind.shape.dim]
        numeric = kind.elem_type not in (0, TensorProto.STRING)
        if not numeric or not shape or len(shape) > MOST_AXES or not all(shape):
            continue
        name = info.name
        data = f"{name}_float"
        if kind.elem_type == TensorProto.DOUBLE:
            data, dtype = name, np.dtype(np.float64)
        else:
            dtype = np.dtype(np.float32)
            nodes.append(helper.make_node("Cast", [name], [data], data, to=TensorProto.FLOAT))
            kind.elem_type = TensorProto.FLOAT
        info.name = f"{name}_out"
        nodes += _products(data, info.name, shape, dtype, weights, rng)
    return nodes


def summarize(rows: Sequence[Row]) -> str:
    """Return one line of counts."""
    parts = []
    for check in CHECKS:
        counts = Counter(row[check].partition(":")[0] for row in rows)
        parts.append(f"{check}: " + ", ".join(f"{n} {k}" for k, n in counts.most_common()))
    return "; ".join([f"{len(rows)} tests", *parts])


def failures(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with a failed check."""
    return [r for r in rows if any(r[check].startswith(FAILED) for check in CHECKS)]


def main() -> int:
    """Run the command line; return the exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", default="", help="tests whose name contains this")
    parser.add_argument("--seeds", type=int, default=3, help="plans per test")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    options = parser.parse_args()
    rows = []
    for test in load_tests():
        if options.only in test.name:
            rows.append({"test": test.name, **measure(test, options.seeds)})
            if failures(rows[-1:]):
                print("; ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    frozen = Counter(r[c] for r in rows for c in CHECKS[1:] if r[c].startswith("frozen"))
    for reason, count in frozen.most_common():
        print(f"{count} {reason}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(summarize(rows))
    return bool(failures(rows))


if __name__ == "__main__":
    sys.exit(main())
