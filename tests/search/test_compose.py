"""Cut A and then cut B of the reduced model equal one composed cut of the original."""

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
def test_two_cuts_equal_their_composition(seed: int) -> None:
    analysis, rng = analyze(load(demo.files().model)), np.random.default_rng(seed)
    first = random_kept(analysis, rng)
    reduced = reduce_model(analysis, first)
    assert set(reduced.origin) == {g.name for g in reduced.analysis.groups}
    second = random_kept(reduced.analysis, rng)
    both = reduced.compose(second)
    assert_same(
        cut(reduced.analysis, plan(reduced.analysis, second)), cut(analysis, plan(analysis, both))
    )
    assert reduced.compose({}) == {
        n: k for n, k in first.items() if len(k) < analysis.group(n).size
    }


def test_two_cuts_of_a_trained_network(zoo) -> None:
    analysis, rng = analyze(load(zoo / "coco_yolofastestv2.onnx")), np.random.default_rng(0)
    reduced = reduce_model(analysis, random_kept(analysis, rng))
    second = random_kept(reduced.analysis, rng)
    assert_same(
        cut(reduced.analysis, plan(reduced.analysis, second)),
        cut(analysis, plan(analysis, reduced.compose(second))),
    )
