"""Shares of the MACs and roles that `inspect` shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from graph_text import net

from onnxprune import demo
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.cli.app import app
from onnxprune.ir.io import load
from onnxprune.report.collect import group_rows
from onnxprune.report.roles import find_roles
from onnxprune.report.shares import (
    Branch,
    describe_role,
    frozen_shares,
    group_shares,
    make_tree,
)
from onnxprune.types import Plan

MODEL = demo.files().model


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyze(load(MODEL))


def test_tree_adds_up(analysis: Analysis) -> None:
    root = make_tree(analysis, load(MODEL))
    cost = analysis.cost()
    assert (root.macs, root.params) == (cost.macs, cost.params)
    assert root.prunable / root.macs == pytest.approx(analysis.prunable_macs())
    pending: list[Branch] = [root]
    while pending:
        branch = pending.pop()
        below = list(branch.branches.values())
        if below:
            # a node may have a name that is the prefix of another one's
            assert sum(b.macs for b in below) <= branch.macs
        pending += below
    assert sum(b.macs for b in root.branches.values()) == root.macs


def test_share_of_a_group_is_what_its_removal_saves_per_channel(analysis: Analysis) -> None:
    total = analysis.cost().macs
    for name, share in group_shares(analysis).items():
        size = analysis.group(name).size
        less = total - analysis.cost({name: range(1, size)}).macs
        assert less / total == pytest.approx(share / size, rel=1e-6)


@pytest.mark.parametrize(
    "recurrence",
    [
        "a, h = GRU<hidden_size=5>(x, w, r); b = Squeeze(a, i); y = MatMul(b, w5)",
        "a = MatMul(x, w2); b = Relu(a); c = MatMul(b, w3); d = Add(a, c); y = MatMul(d, w4)",
    ],
)
def test_layer_with_a_group_on_both_axes_counts_once(recurrence: str) -> None:
    weights = (
        "float[1,15,4] w, float[1,15,5] r, float[4,9] w2, float[9,9] w3, float[9,2] w4, "
        "float[5,2] w5, int64[1] i = {1}"
    )
    shares = group_shares(analyze(load(net(f"float[7,1,4] x | {weights} | {recurrence}"))))
    assert list(shares.values()) == [1]


def test_page_and_inspect_show_the_same_shares(analysis: Analysis) -> None:
    plan = Plan("", {}, {})
    rows = {row.name: row.macs_share for row in group_rows(analysis, plan)}
    assert rows == group_shares(analysis)


def test_every_reason_has_a_subject_and_the_tables_a_legend() -> None:
    text = CliRunner().invoke(app, ["inspect", str(MODEL)]).output
    assert re.search(r"^1 +0% +model +graph output$", text, re.MULTILINE)
    assert text.count("\nMACs: share of those of ") == 2


def test_frozen_share_is_that_of_the_nodes_along_frozen_axes(analysis: Analysis) -> None:
    shares = frozen_shares(analysis)
    assert set(shares) == {(f.op, f.reason) for f in analysis.frozen}
    assert all(0 <= share <= 1 for share in shares.values()) and max(shares.values()) > 0


def test_roles_of_a_transformer(zoo: Path) -> None:
    analysis = analyze(load(zoo / "cifar10_vit_pgd_2_3_16.onnx"))
    roles = find_roles(analysis)
    found = {group.name: describe_role(analysis, group, roles) for group in analysis.groups}
    assert found["/0/projection/Conv"] == "residual stream"
    assert found["/1/1.0/1.0.1/fn/fn.1/fn.1.0/MatMul"] == "MLP hidden"
    assert found["/1/1.0/1.0.0/fn/fn.1/value/MatMul/dims"] == "v"
    assert found["/1/1.0/1.0.0/fn/fn.1/query/MatMul/dims"] == "q, k"
    assert found["/1/1.0/1.0.0/fn/fn.1/query/MatMul"] == "heads (q, k, v)"


@pytest.mark.parametrize(
    ("joined", "role"),
    [
        ("h = Add(a, b)", "residual stream"),
        ("r = Relu(a); h = Sum(r, b)", "residual stream"),
        ("r = Sigmoid(a); h = Mul(r, b)", ""),
        ("c = Mul(a, a); d = Add(a, c); h = Mul(d, b)", ""),  # adds what one layer writes
    ],
)
def test_only_a_sum_of_layers_is_a_residual_stream(joined: str, role: str) -> None:
    text = (
        "float[2,4] x | float[4,8] w1, float[4,8] w2, float[8,3] w3 | a = MatMul(x, w1); "
        f"b = MatMul(x, w2); {joined}; y = MatMul(h, w3)"
    )
    analysis = analyze(load(net(text)))
    (group,) = analysis.groups
    assert describe_role(analysis, group, find_roles(analysis)) == role


def test_inspect_prints_the_tree_and_the_roles() -> None:
    result = CliRunner().invoke(app, ["inspect", str(MODEL), "--tree"])
    assert result.exit_code == 0 and result.output.splitlines()[1].startswith("model ")
    assert "residual stream" in CliRunner().invoke(app, ["inspect", str(MODEL)]).output


def test_inspect_imports_nothing_that_prunes_or_measures() -> None:
    code = (
        "import sys; from onnxprune.cli import run; run(['inspect', sys.argv[1]]);"
        "print([m for m in sys.modules if m in ('jinja2', 'onnxruntime', 'onnxprune.run.pipeline',"
        " 'onnxprune.criteria.base', 'onnxprune.autodiff.build')], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(MODEL)], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"
