"""Removal of whole branches: choice, constraints, and the constants that replace them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_laws import plan_of
from graph_text import net
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.blocks import removable_branches
from onnxprune.analysis.running_cost import RunningCost
from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.criteria.reconstruction import reconstruction
from onnxprune.data.dataset import synthetic
from onnxprune.ir.io import load, to_bytes
from onnxprune.ir.runtime import Session
from onnxprune.repair import REPAIRS
from onnxprune.run.adapter import input_types
from onnxprune.surgery.cut import cut
from onnxprune.testing.plans import check_plan
from onnxprune.types import Plan, Scores

_NORM = ", ".join(f"float[12] s{i}, float[12] t{i}, float[12] m{i}, float[12] v{i}" for i in (1, 2))
# a stem, a basic block with normalization, a bottleneck, a head; w2 produces the output of the
# first block
NETWORK = (
    "float[n,4,8,8] x | float[12,4,3,3] w0, float[12,12,3,3] w1, float[12,12,3,3] w2, "
    "float[8,12,1,1] w3, float[8,8,3,3] w4, float[12,8,1,1] w5, float[12] b5, "
    f"float[5,12] w6, {_NORM} |"
    "a = Conv<pads=[1,1,1,1]>(x, w0); h = Relu(a); b0 = Conv<pads=[1,1,1,1]>(h, w1); "
    "b1 = BatchNormalization(b0, s1, t1, m1, v1); b = Relu(b1);"
    "c0 = Conv<pads=[1,1,1,1]>(b, w2); c = BatchNormalization(c0, s2, t2, m2, v2); "
    "d0 = Add(h, c); d = Relu(d0);"
    "e0 = Conv(d, w3); e = Relu(e0); f0 = Conv<pads=[1,1,1,1]>(e, w4); f = Relu(f0); "
    "g = Conv(f, w5, b5); k0 = Add(g, d); k = Relu(k0);"
    "p = GlobalAveragePool(k); q = Flatten(p); y = Gemm<transB=1>(q, w6)"
)
SAMPLES = 64
FIRST, SECOND = ("b0",), ("e0", "f0")  # groups of the two blocks


def model_of(quiet: str = "") -> ModelProto:
    """Return the network with the weight `quiet` divided by 1000: a nearly constant branch."""
    model = net(NETWORK)
    for i, tensor in enumerate(model.graph.initializer):
        if tensor.name == quiet:
            model.graph.initializer[i].CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) / 1000, quiet)
            )
    return model


@cache
def scored(quiet: str = "") -> tuple[Context, Scores]:
    analysis = analyze(load(model_of(quiet)))
    context = Context(
        analysis, synthetic(input_types(analysis.model), samples=SAMPLES, seed=3), batch_size=8
    )
    return context, reconstruction(context)


def planned(name: str, quiet: str, share: float, **constraints: Any) -> Plan:
    context, scores = scored(quiet)
    budget = {"macs": share * context.analysis.cost().macs}
    return allocate(
        name, context, scores, Constraints(budgets=budget, **{"blocks": True, **constraints})
    )


@pytest.mark.parametrize("share", [0.7, 0.4, 0.15])
@pytest.mark.parametrize("name", ["knapsack", "uniform"])
def test_costs_counted_group_by_group_give_the_same_plan(
    monkeypatch: pytest.MonkeyPatch, name: str, share: float
) -> None:
    plan = planned(name, "w2", share)
    monkeypatch.setattr(RunningCost, "of", lambda *_: None)
    assert planned(name, "w2", share) == plan


def removed_groups(plan: Plan) -> set[str]:
    return {name for name, kept in plan.kept.items() if not kept}


def test_removable_branches() -> None:
    assert {frozenset(b) for b in removable_branches(scored()[0].analysis).values()} == {
        frozenset(FIRST),
        frozenset(SECOND),
    }


@pytest.mark.parametrize("name", ["divergence", "layer-error"])
@pytest.mark.parametrize("quiet, block", [("w2", FIRST), ("w5", SECOND)])
def test_a_nearly_constant_branch_is_removed(name: str, quiet: str, block: tuple[str, ...]) -> None:
    context, _ = scored(quiet)
    left = context.analysis.cost(dict.fromkeys(block, ())).macs / context.analysis.cost().macs
    plan = planned(name, quiet, left)
    assert removed_groups(plan) == set(block) == set(plan.kept), "the block alone meets the budget"
    check_plan(context.analysis, plan)


@pytest.mark.parametrize("name", ["divergence", "layer-error"])
def test_constraints_that_forbid_removal(name: str) -> None:
    for limits in (
        {"blocks": False},
        {"floor": 2},
        {"ratios": {"b0": 0.5}},
        {"ratios": {"b0": 0.0}},
    ):
        assert "b0" not in removed_groups(planned(name, "w2", 0.7, **limits)), limits
    assert "b0" in removed_groups(planned(name, "w2", 0.7, max_fraction=0.5, round_to=12))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["divergence", "layer-error", "knapsack", "threshold", "uniform"]),
    st.floats(0.2, 0.95),
    st.sampled_from(["macs", "params", "bytes"]),
    st.sampled_from([1, 4]),
)
def test_plans_meet_the_budget_and_can_be_cut(
    name: str, share: float, cost: str, round_to: int
) -> None:
    """Whatever branches are removed."""
    context, scores = scored()
    analysis = context.analysis
    budget = share * analysis.cost().as_dict()[cost]
    plan = allocate(
        name, context, scores, Constraints({cost: budget}, round_to=round_to, blocks=True)
    )
    assert analysis.cost(plan.kept).as_dict()[cost] <= budget
    check_plan(analysis, plan)


def _error(context: Context, model: Any) -> float:
    data = context.required_data("test")
    original, pruned = Session(context.analysis.model), Session(model)
    pairs = [(original.run(b)["y"], pruned.run(b)["y"]) for b in data.batches(8)]
    return float(
        sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs)
    )


@pytest.mark.parametrize("repair", ["bias", "batchnorm", "least-squares"])
@pytest.mark.parametrize("block", [FIRST, SECOND])
def test_the_constant_is_the_mean_of_the_branch(repair: str, block: tuple[str, ...]) -> None:
    context, _ = scored()
    analysis = context.analysis
    plan = plan_of(
        analysis,
        {**dict.fromkeys(block, ()), "a": tuple(range(0, 12, 2))}
        if repair == "bias"
        else dict.fromkeys(block, ()),
    )
    bare = cut(analysis, plan)
    repaired = REPAIRS.get(repair)(analysis, plan, bare, context)
    tensor = "c" if block == FIRST else "g"
    values = np.concatenate(
        [
            Session(analysis.model, [tensor]).run(b)[tensor]
            for b in context.required_data("test").batches(8)
        ]
    )
    expected = values.mean((0, 2, 3), keepdims=True)[:, list(plan.kept.get("a", range(12)))]
    np.testing.assert_allclose(repaired.weights[tensor].array(), expected, rtol=1e-4, atol=1e-5)
    assert _error(context, repaired) < _error(context, bare)


def test_end_to_end(tmp_path: Path) -> None:
    """With the trade-off curve and a control; plan and report are written and read."""
    source = tmp_path / "model.onnx"
    source.write_bytes(to_bytes(load(model_of("w2"))))
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((160, 4, 8, 8)).astype(np.float32))
    result = onnxprune.optimize(
        source,
        tmp_path / "out.onnx",
        data=str(data),
        target="macs=32%",
        blocks=True,
        curve=True,
        control=1,
        engine="none",
        round_to=1,
    )
    assert result.report.verification["ok"] and "b0" in removed_groups(result.plan)
    assert Plan.from_json(result.plan.to_json()) == result.plan
    assert {g.name: g.after for g in result.report.groups}["b0"] == 0
    assert analyze(load(tmp_path / "out.onnx")).cost().macs == result.report.after["macs"]
    near = onnxprune.optimize(
        source, data=str(data), max_divergence=0.05, blocks=True, engine="none", round_to=1
    )
    assert near.report.bisection["reached"] <= 0.05


@pytest.mark.slow
def test_resnet20_end_to_end(zoo: Path, tmp_path: Path) -> None:
    """On a trained network, with a target that widths alone do not reach."""
    images = (
        np.load(zoo / "data" / "cifar10_field_1000.npz")["images"][:192].astype(np.float32) / 255
    )
    x = (
        (images - np.array([0.485, 0.456, 0.406], np.float32))
        / np.array([0.229, 0.224, 0.225], np.float32)
    ).transpose(0, 3, 1, 2)
    data = tmp_path / "data.npz"
    np.savez(data, **{next(iter(Session(load(zoo / "cifar10_resnet20.onnx")).inputs)): x})
    result = onnxprune.optimize(
        zoo / "cifar10_resnet20.onnx",
        data=str(data),
        target="macs=20%",
        blocks=True,
        max_fraction=0.5,
        fast=True,
        repair="bias",
        engine="none",
    )
    assert result.report.verification["ok"] and removed_groups(result.plan)
    assert result.report.after["macs"] <= 0.2 * result.report.before["macs"]
    assert len(result.model.proto.graph.node) < len(
        analyze(load(zoo / "cifar10_resnet20.onnx")).model.proto.graph.node
    )
