"""Cut A then cut B of what is left is cut A or B, through the way back that searches use."""

from __future__ import annotations

import numpy as np
import pytest
from graph_laws import assert_same

from onnxprune import demo
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load
from onnxprune.search.compose import reduce_model
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan


def random_kept(analysis, rng: np.random.Generator) -> dict[str, tuple[int, ...]]:
    return {
        g.name: tuple(
            sorted(
                rng.choice(
                    g.size, rng.integers(max(g.size // 2, 1), g.size + 1), replace=False
                ).tolist()
            )
        )
        for g in analysis.groups
    }


def plan(analysis, kept) -> Plan:
    return Plan(
        analysis.digest, kept, {n: analysis.group(n).size for n in kept}, {}, analysis.options
    )


@pytest.mark.parametrize("seed", range(4))
def test_two_cuts_are_one(seed: int) -> None:
    analysis, rng = analyze(load(demo.files().model)), np.random.default_rng(seed)
    first = random_kept(analysis, rng)
    step = reduce_model(analysis, first)
    assert set(step.origin) == {g.name for g in step.analysis.groups}
    second = random_kept(step.analysis, rng)
    both = step.compose(second)
    assert_same(
        cut(step.analysis, plan(step.analysis, second)), cut(analysis, plan(analysis, both))
    )
    assert step.compose({}) == {n: k for n, k in first.items() if len(k) < analysis.group(n).size}


def test_on_a_trained_network(zoo) -> None:
    analysis, rng = analyze(load(zoo / "coco_yolofastestv2.onnx")), np.random.default_rng(0)
    step = reduce_model(analysis, random_kept(analysis, rng))
    second = random_kept(step.analysis, rng)
    assert_same(
        cut(step.analysis, plan(step.analysis, second)),
        cut(analysis, plan(analysis, step.compose(second))),
    )
