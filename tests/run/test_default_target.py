"""Defaults for models that cannot be pruned to half, or whose activations are not measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune import demo
from onnxprune.errors import TargetError
from onnxprune.ir.io import load
from onnxprune.run.pipeline import make_plan, optimize
from onnxprune.run.recipe import Recipe
from tests.graph_text import net

# the first convolution reads and writes channels of the interface; 24 channels between the others
# can be pruned, a third of the MACs
TEXT = (
    "float[n,16,8,8] x | float[16,16,3,3] a, float[24,16,1,1] b, float[16,24,1,1] c |"
    "y = Conv<pads=[1,1,1,1]>(x, a); p = Conv(x, b); q = Relu(p); z = Conv(q, c) |"
    "float[n,16,8,8] y, float[n,16,8,8] z"
)
UNPRUNABLE = "float[n,16] x | float[16,16] a | y = MatMul(x, a)"
PRUNABLE = "float[n,16] x | float[16,64] a, float[64,16] b | p = MatMul(x, a); y = MatMul(p, b)"


def test_default_target_is_half_of_what_can_be_removed() -> None:
    result = optimize(load(net(TEXT)), engine=())
    share = result.report.after.macs / result.report.before.macs
    # 8 of 24 channels are the least: (2304 + 256) / (2304 + 768) = 83.3 %
    assert 0.833 < share <= 0.917
    (warning,) = [w for w in result.report.warnings if "default target" in w]
    assert "macs=50% cannot be met: 83.3% is the least" in warning and "macs=91.7%" in warning
    assert make_plan(load(net(TEXT)), Recipe()).kept == result.plan.kept


def test_given_target_fails_if_it_cannot_be_met() -> None:
    with pytest.raises(TargetError, match=r"macs <= 50.0% cannot be met"):
        optimize(load(net(TEXT)), engine=(), target="macs=50%")
    with pytest.raises(TargetError, match=r"macs <= 50.0% cannot be met"):
        optimize(load(net(UNPRUNABLE)), engine=(), target="macs=50%")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            UNPRUNABLE,
            r"all channels have to stay, because of: graph input \(1 axis\), graph output",
        ),
        ("float[n,16] x | | y = Relu(x)", "no weight has an axis of channels between two layers"),
    ],
    ids=["frozen", "no weights"],
)
def test_model_without_groups_ends_with_the_reasons(text: str, why: str) -> None:
    for run in (lambda m: optimize(m, engine=()), lambda m: make_plan(m, Recipe())):
        with pytest.raises(TargetError, match=f"nothing in this model can be pruned: {why}") as e:
            run(load(net(text)))
        assert (e.value.code, e.value.exit_code) == ("no-groups", 3)
        assert "50" not in e.value.message


def test_reachable_default_target_stays() -> None:
    report = optimize(load(net(PRUNABLE)), engine=()).report
    assert [row.target for row in report.targets] == ["macs=50%"]
    assert not [w for w in report.warnings if "default target" in w]


def test_channels_in_bodies_are_scored_by_their_weights(tmp_path: Path) -> None:
    """Their activations are no outputs: statistics would leave all groups without scores."""
    body = "= MatMul(x, a); {0}q = Relu({0}p); {0}r = MatMul({0}q, b)"
    then, otherwise = (f"{name}p {body.format(name)}" for name in "st")
    text = (
        "float[n,16] x, bool c | float[16,64] a, float[64,16] b | "
        f"y = If(c) <then_branch = g1 () => (float[n,16] sr) {{ {then} }}, "
        f"else_branch = g2 () => (float[n,16] tr) {{ {otherwise} }}>"
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 16)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x[:, None], c=np.ones(12, bool))
    report = optimize(load(net(text)), engine=(), data=str(tmp_path / "x.npz")).report
    assert report.after.macs <= report.before.macs / 2
    assert any("bodies of If, Loop or Scan" in warning for warning in report.warnings)


@pytest.mark.parametrize("limits", [{"floor": 1000}, {"max_fraction": 0}, {"round_to": 1000}])
def test_limits_that_leave_nothing_to_remove_are_an_error(limits: dict[str, int]) -> None:
    with pytest.raises(TargetError, match="no channel can be removed within"):
        optimize(demo.files().model, criterion="l2", repair="none", engine="none", **limits)
