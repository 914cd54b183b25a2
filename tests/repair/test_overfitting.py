"""Repairs with as many rows as unknowns, where a solution without enough ridge fits noise."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import net

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import open_data
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.repair import REPAIRS, problem
from onnxprune.run.adapter import input_types
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

KEPT = 96  # inputs of the last layer after the cut, of which each image gives one row
NETWORK = (
    "float[N,3,8,8] x | float[192,3,3,3] w, float[192] b, float[30,192] f, float[30] g | "
    "h=Conv(x,w,b);r=Relu(h);p=GlobalAveragePool(r);q=Flatten(p);y=Gemm<transB=1>(q,f,g) | "
    "float[N,30] y"
)
TESTED = 256


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyze(load(net(NETWORK)))


def make_images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def repair(analysis: Analysis, images: np.ndarray, flip: bool = False) -> Model:
    (group,) = analysis.groups
    kept = {group.name: tuple(range(KEPT))}
    plan = Plan(analysis.digest, kept, {group.name: group.size}, {}, analysis.options)
    data = open_data({"x": images}, input_types(analysis.model), samples=len(images))
    context = Context(analysis, data, flip=flip)
    return REPAIRS.get("least-squares")(analysis, plan, cut(analysis, plan), context)


def measure_error(analysis: Analysis, model: Model) -> tuple[float, float]:
    """Return the relative squared error on images that no repair has seen, and its error."""
    feeds = {"x": make_images(TESTED, 1)}
    expected, actual = (Session(m).run(feeds)["y"] for m in (analysis.model, model))
    errors = np.square(actual - expected, dtype=np.float64).sum(1)
    power = np.square(expected - expected.mean(0), dtype=np.float64).sum() / TESTED
    return errors.mean() / power, errors.std() / power / TESTED**0.5


def test_more_images_never_fit_worse(analysis: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither do mirror images: 7 of 8 images are fitted, so that 110 of them are 96 rows."""
    images = make_images(880, 0)
    counts = (32, 64, 110, 220, 880)
    found = [measure_error(analysis, repair(analysis, images[:n])) for n in counts]
    for (before, _), (after, margin) in zip(found, found[1:], strict=False):
        assert after < before + margin
    (plain, _), (mirrored, margin) = (
        found[1],
        measure_error(analysis, repair(analysis, images[:64], flip=True)),
    )
    assert mirrored < plain + margin
    # the control: the least ridge alone
    monkeypatch.setattr(problem, "FEW_ROWS", 0)
    alone, margin = measure_error(analysis, repair(analysis, images[:64]))
    assert alone > 1.2 * plain + margin
