"""Latency that the channels of a group cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_nets import residual

from onnxprune.analysis.walk import analyze
from onnxprune.engines import ENGINES
from onnxprune.engines.cost.latency import Probe
from onnxprune.engines.cost.layers import LatencyCache
from onnxprune.engines.cost.savings import group_savings, layer_specs
from onnxprune.engines.measure import Schedule
from onnxprune.ir.io import load

ANALYSIS = analyze(residual(32))
ONCE = Schedule(seconds=0.0, warmup=1, min_rounds=1, max_rounds=1)


@pytest.mark.parametrize("name", ["systolic8", "gemmini"])
def test_on_a_computed_engine_savings_are_those_of_halving_the_group(name: str) -> None:
    """Layers add up there, so timing them alone must give what cutting the model gives."""
    engine = ENGINES.get(name)
    savings = group_savings(engine, ANALYSIS)
    with Probe(engine, ANALYSIS, schedule=ONCE) as probe:
        for group in ANALYSIS.groups:
            saved = probe.original_ms - probe({group.name: tuple(range(group.size // 2))})
            assert savings[group.name] == pytest.approx(2 * saved)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["vww_mobilenetv1_0.25", "cifar10_mlp_resnet8"])
def test_depthwise_layers_and_shortcuts_too(zoo: Path, name: str) -> None:
    analysis, engine = analyze(load(zoo / f"{name}.onnx")), ENGINES.get("systolic8")
    savings = group_savings(engine, analysis)
    with Probe(engine, analysis, schedule=ONCE) as probe:
        for group in analysis.groups:
            half = -(-(group.size // 2) // 8) * 8
            kept = half if half < group.size else group.size // 2
            saved = probe.original_ms - probe({group.name: tuple(range(kept))})
            assert savings[group.name] == pytest.approx(
                saved * group.size / (group.size - kept), rel=1e-6, abs=1e-3 * max(savings.values())
            )


def test_every_shape_is_timed_once_and_kept(tmp_path: Path) -> None:
    engine, cache = ENGINES.get("onnxruntime"), LatencyCache(tmp_path)
    first = group_savings(engine, ANALYSIS, cache=cache)
    assert set(first) == {g.name for g in ANALYSIS.groups} and min(first.values()) > 0
    assert group_savings(engine, ANALYSIS, cache=LatencyCache(tmp_path)) == first
    assert set(layer_specs(ANALYSIS)) == {"n_c0", "n_c1", "n_c2", "n_g"}
