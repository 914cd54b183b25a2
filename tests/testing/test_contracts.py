"""Every built-in and every installed plug-in keeps the contract of its kind.

The registries and the rule table are iterated, so that a new entry is tested without a change here;
a new row of the table needs a graph in tests/analysis/cases/.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import numpy as np
import pytest
from cases import no_kernel
from engine_nets import residual
from graph_text import net
from graphs import CASES, NOTHING_TO_CUT, Case
from indexed import INDEXED
from new_rows import BY_REFERENCE, NEW_ROWS

from onnxprune import demo
from onnxprune.allocators import ALLOCATORS
from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.movement import MOVES
from onnxprune.analysis.rules import PLUGINS, RULES
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import Data, open_data, synthetic
from onnxprune.engines import ENGINES
from onnxprune.engines.base import random_feeds, static_inputs
from onnxprune.errors import OnnxpruneError
from onnxprune.ir.io import load
from onnxprune.metrics import METRICS, MetricOptions, find_metric
from onnxprune.metrics.base import Labels, Outputs
from onnxprune.repair import REPAIRS
from onnxprune.run.adapter import input_types
from onnxprune.search import METHODS
from onnxprune.search.base import Search
from onnxprune.testing.allocators import check_allocator
from onnxprune.testing.contract import ContractError
from onnxprune.testing.criteria import check_criterion
from onnxprune.testing.engines import check_engine
from onnxprune.testing.methods import check_method
from onnxprune.testing.metrics import check_metric
from onnxprune.testing.plans import check_plan
from onnxprune.testing.repairs import check_repair
from onnxprune.testing.rules import check_rule

FILES = demo.files()
SHARE = 0.8  # of the original MACs, a budget that every method reaches
SAMPLES = 32
NORMALIZED = (
    "float[n,4,6,6] x | float[8,4,3,3] w1, float[8] g, float[8] o, float[8] m, float[8] v, "
    "float[8,8,1,1] w2, float[6,8] w3, float[5,6] w4 | "
    "a = Conv(x, w1); n = BatchNormalization(a, g, o, m, v); r = Relu(n); b = Conv(r, w2); "
    "d = Add(b, r); e = Relu(d); p = GlobalAveragePool(e); f = Flatten(p); "
    "h = Gemm<transB=1>(f, w3); y = Gemm<transB=1>(h, w4)"
)
# graphs for operators of plug-ins that take one input and no attributes
AROUND = (
    "float[2,6,4] x | float[4,8] w1, float[8,5] w2 | "
    "a = MatMul(x, w1); b = {op}(a); y = MatMul(b, w2) | float[2,6,5] y",
    "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,8,1,1] w2 | "
    "a = Conv(x, w1); b = {op}(a); y = Conv(b, w2) | float[2,5,6,6] y",
)


@cache
def small() -> Context:
    """Return a context with a normalization and a residual connection."""
    analysis = analyze(load(net(NORMALIZED)))
    data = synthetic({"x": (["n", 4, 6, 6], "tensor(float)")}, samples=12, seed=5)
    return Context(analysis, data, batch_size=4)


@cache
def digits() -> Context:
    """Return a context of the demo network and its calibration images."""
    analysis = analyze(load(FILES.model))
    data: Data = open_data(FILES.calibration, input_types(analysis.model), samples=SAMPLES)
    return Context(analysis, data, batch_size=16)


def budgets(analysis: Analysis) -> Constraints:
    return Constraints({"macs": SHARE * analysis.cost().macs}, round_to=4)


@pytest.mark.parametrize("name", list(CRITERIA))
def test_criterion(name: str) -> None:
    check_criterion(CRITERIA.get(name), small())


@pytest.mark.parametrize("name", list(ALLOCATORS))
def test_allocator(name: str) -> None:
    context = digits()
    scores = CRITERIA.get("l2")(context)
    constraints = budgets(context.analysis)
    check_allocator(ALLOCATORS.get(name), context, scores, constraints)
    plan = allocate(name, context, scores, constraints)
    check_plan(context.analysis, plan)
    assert context.analysis.cost(plan.kept).macs <= constraints.budgets["macs"]


@pytest.mark.parametrize("name", list(METHODS))
def test_method(name: str) -> None:
    context = digits()
    # a computed engine: measured times could change the plan
    check_method(METHODS.get(name), Search(context, budgets(context.analysis), engine="systolic16"))


@pytest.mark.parametrize("name", list(REPAIRS))
def test_repair(name: str) -> None:
    context = small()
    halves = {g.name: tuple(range(0, g.size, 2)) for g in context.analysis.groups}
    check_repair(REPAIRS.get(name), context, context.analysis.plan(halves))


@pytest.mark.parametrize("name", list(ENGINES))
def test_engine(name: str) -> None:
    engine = ENGINES.get(name)
    assert engine.name == name
    model = residual()
    check_engine(engine, model, random_feeds(static_inputs(model, {})))


def sample_batches() -> Iterator[list[tuple[Outputs, Labels]]]:
    """Yield six batches of one sample for each kind of label."""
    rng = np.random.default_rng(4)
    yield [({"y": rng.normal(size=(1, 8))}, {"labels": rng.integers(0, 8, 1)}) for _ in range(6)]
    yield [
        ({"y": rng.normal(size=(1, 3, 4, 4))}, {"masks": rng.integers(0, 3, (1, 4, 4))})
        for _ in range(6)
    ]
    yield [
        (
            {"y": rng.random((1, 3, 4, 4))},
            {"targets": rng.integers(0, 256, (1, 4, 4, 3)).astype(np.uint8)},
        )
        for _ in range(6)
    ]
    boxes = []
    for _ in range(6):
        box = np.r_[rng.uniform(0.3, 0.6, 2), 0.3, 0.3]
        near = np.r_[box[:2] - 0.15, box[:2] + rng.uniform(0.1, 0.15), rng.random(), 0]
        boxes.append(({"y": near[None, None]}, {"boxes": np.r_[0, 0, box][None]}))
    yield boxes


def accepted_batches(name: str) -> list[tuple[Outputs, Labels]]:
    """Return the first batches that a metric accepts."""
    reasons = []
    for batches in sample_batches():
        try:
            find_metric(name, MetricOptions(classes=3)).update(*batches[0])
        except OnnxpruneError as problem:
            reasons.append(problem.message)
        else:
            return batches
    raise AssertionError(f"metric {name!r} accepts no kind of label of this test: {reasons}")


@pytest.mark.parametrize("name", list(METRICS))
def test_metric(name: str) -> None:
    if name == "coco-official":
        pytest.importorskip("pycocotools")
    check_metric(partial(find_metric, name, MetricOptions(classes=3)), accepted_batches(name))
    assert find_metric(name).name == name


def shows(case: Case, op: str) -> bool:
    """Return whether a graph contains an operator."""
    return f"{op}(" in case.text or f"{op}<" in case.text


@cache
def cases_of(op: str) -> tuple[Case, ...]:
    """Return the graphs of tests/analysis that contain an operator."""
    cases = (*CASES.values(), *INDEXED.values(), *NEW_ROWS.values())
    return tuple(case for case in cases if shows(case, op))


def lacks_kernel(op: str) -> bool:
    """Return whether onnxruntime cannot run the only graphs that contain an operator.

    Their cuts are compared by onnx's reference evaluator, in tests/analysis.
    """
    known = any(shows(case, op) for case in no_kernel.CASES.values())
    return op in BY_REFERENCE or known and not cases_of(op)


RUNNABLE = sorted(op for op in {*RULES, *MOVES} - NOTHING_TO_CUT if not lacks_kernel(op))


@pytest.mark.parametrize("op", RUNNABLE)
def test_rule(op: str) -> None:
    """One graph is enough in which a channel that can be cut passes the operator."""
    reasons = []
    for case in cases_of(op):
        try:
            check_rule(op, load(net(case.text, opset=case.opset)), allow_mixing=case.allow, plans=1)
            return
        except ContractError as problem:
            reasons.append(problem.message)
    raise AssertionError(f"no graph in tests/analysis shows {op}: {reasons}")


@pytest.mark.parametrize("op", list(PLUGINS))
def test_rule_of_a_plugin(op: str) -> None:
    """The row of a plug-in, on tokens and on images."""
    domain, _, name = op.rpartition("::")
    reasons = []
    for text in AROUND:
        try:
            check_rule(op, load(net(text.format(op=f"{domain}.{name}" if domain else name))))
            return
        except ContractError as problem:
            reasons.append(problem.message)
    pytest.skip(f"the plug-in's own tests have to check {op}: {reasons}")
