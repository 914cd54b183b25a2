"""Repairs on few and many images, mirrored or not, where memory holds few at a time."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import net

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import Data, open_data
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.repair import REPAIRS, least_squares, waiting
from onnxprune.run.adapter import input_types
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

# large activations in front of small ones
NETWORK = (
    "float[N,3,16,16] x | float[24,3,1,1] w, float[24,24,1,1] w2, float[16,24,3,3] w3, "
    "float[6,16,1,1] w4 | h=Conv(x,w);r=Relu(h);g=Conv(r,w2);s=Relu(g);"
    "p=Conv<kernel_shape=[3,3],strides=[4,4]>(s,w3);q=Relu(p);y=Conv(q,w4) | float[N,6,4,4] y"
)
IMAGES, TESTED = 96, 64


def make_images(count: int, seed: int) -> np.ndarray:
    """Return images of two colors each: one image says little about the next."""
    rng = np.random.default_rng(seed)
    colors = rng.standard_normal((count, 2, 3, 1, 1))
    shades = rng.standard_normal((count, 2, 1, 16, 16))
    return (colors * shades).sum(1).astype(np.float32)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyze(load(net(NETWORK)))


@pytest.fixture(scope="module")
def plan(analysis: Analysis) -> Plan:
    sizes = {g.name: g.size for g in analysis.groups}
    kept = {name: tuple(range(size // 2)) for name, size in sizes.items()}
    return Plan(analysis.digest, kept, sizes, {}, analysis.options)


def measure_error(analysis: Analysis, model: Model, images: np.ndarray) -> tuple[float, float]:
    """Return the relative squared error on images, and its standard error."""
    expected, actual = (Session(m).run({"x": images})["y"] for m in (analysis.model, model))
    errors = np.square(actual - expected, dtype=np.float64).reshape(len(images), -1).sum(1)
    power = np.square(expected - expected.mean(0), dtype=np.float64).sum() / len(images)
    return errors.mean() / power, errors.std() / power / len(images) ** 0.5


def test_more_images_and_mirrors_never_fit_worse(
    analysis: Analysis, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early layers see all images, although memory holds eight of them there."""
    images, tested = make_images(IMAGES, 0), make_images(TESTED, 1)
    monkeypatch.setattr(least_squares, "LIVE_BYTES", 1_000_000)

    def repair(count: int, flip: bool = False) -> tuple[float, float]:
        data: Data = open_data({"x": images[:count]}, input_types(analysis.model), samples=count)
        context = Context(analysis, data, batch_size=4, flip=flip)
        model = REPAIRS.get("least-squares")(analysis, plan, cut(analysis, plan), context)
        return measure_error(analysis, model, tested)

    (few, _), (many, margin), (mirrored, _) = repair(16), repair(IMAGES), repair(IMAGES, True)
    assert many < few and mirrored < many + margin
    monkeypatch.setattr(waiting, "STREAM_MULTIPLICATIONS", 0.0)
    # the control: early layers fitted on what memory holds
    alone, _ = repair(IMAGES)
    assert many < 0.9 * alone
