"""Dynamic network surgery: its rules by hand, and its effect on scikit-learn's digits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.criteria.dead import dead_channels
from onnxprune.data.dataset import open_data
from onnxprune.errors import UsageError
from onnxprune.ir.io import Model, digest, load
from onnxprune.ir.runtime import Session
from onnxprune.repair.bias import bias
from onnxprune.sparsify.report import sparsity
from onnxprune.sparsify.surgery import (
    KeepZeros,
    PruneAndSplice,
    SurgerySettings,
    threshold,
    update_mask,
)
from onnxprune.sparsify.weights import SparsifySettings, sparsify
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

pytest.importorskip("torch")
import torch

from onnxprune.tune.finetune import tune
from onnxprune.tune.samples import Samples
from onnxprune.tune.settings import TuneSettings

RNG = np.random.default_rng(0)


def mlp(*sizes: int, seed: int = 0) -> Model:
    """Build layers with random weights (Kaiming) and Relu between them."""
    rng, name, nodes, held = np.random.default_rng(seed), "x", [], []
    for i, (a, b) in enumerate(pairwise(sizes)):
        weight = rng.standard_normal((b, a)).astype(np.float32) * np.float32((2 / a) ** 0.5)
        held += [
            numpy_helper.from_array(weight, f"w{i}"),
            numpy_helper.from_array(np.zeros(b, np.float32), f"b{i}"),
        ]
        last = i == len(sizes) - 2
        nodes.append(
            helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], ["y" if last else f"h{i}"], transB=1)
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"]))
            name = f"r{i}"
    info = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s])
        for n, s in (("x", sizes[0]), ("y", sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "mlp", info[:1], info[1:], held)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def test_threshold_follows_the_paper() -> None:
    weight = np.array([1.0, -2.0, 3.0, -4.0])
    assert threshold(weight, 2.0) == pytest.approx(2.5 + 2 * np.sqrt(30 / 4 - 2.5**2))
    assert threshold(weight, -10.0) == 0


def test_mask_is_unchanged_between_the_thresholds() -> None:
    weight = np.array([0.9, -0.9, 0.91, -1.1, 1.11])
    for was in (False, True):
        assert update_mask(np.full(5, was), weight, 1.0).tolist() == [False, False, was, was, True]


def test_a_pruned_weight_keeps_learning_and_is_spliced() -> None:
    """Y = w x for x = 1 and pruned w: the gradient is that at 0, so w grows until it is spliced."""
    model = mlp(2, 1)
    hook = PruneAndSplice(model, SurgerySettings(c_rate=0.0, stop_step=10**9))
    hook.thresholds["w0"] = 0.5
    from onnxprune.tune.bridge import to_module

    module = to_module(model)
    with torch.no_grad():
        module.named()["w0"].copy_(torch.tensor([[0.4, 2.0]]))
    hook.before_step(module, 0)
    assert hook.masks["w0"].tolist() == [[False, True]]
    feed = {"x": torch.ones(1, 2)}
    assert module(feed)["y"].item() == 2.0
    module(feed)["y"].sum().backward()
    assert module.named()["w0"].grad.tolist() == [[1.0, 1.0]], (
        "the gradient of the masked weight, applied to the weight"
    )
    with torch.no_grad():
        module.named()["w0"].add_(0.2)
    hook.before_step(module, 0)
    assert hook.masks["w0"].all()


def test_masks_are_updated_less_often_and_then_constant() -> None:
    settings = SurgerySettings(gamma=0.01, stop_step=2000, c_rate=1.0)
    model = mlp(20, 30)
    from onnxprune.tune.bridge import to_module

    hook, module, looked = PruneAndSplice(model, settings), to_module(model), []
    for step in range(2500):
        before = module.transform
        hook.before_step(module, step)
        looked.append(module.transform is not before)
    expected = np.sum((1 + 0.01 * np.arange(2000)) ** -1.0)
    assert sum(looked) == pytest.approx(expected, abs=4 * np.sqrt(expected)) and not any(
        looked[2000:]
    )
    assert not hook.accepts(1999) and hook.accepts(2000)


def test_tuning_keeps_zeros() -> None:
    model = sparsify(mlp(10, 20, 5), SparsifySettings(amount=0.7, ops=("Gemm",))).model
    data = Samples(
        {"x": RNG.standard_normal((64, 10)).astype(np.float32)}, {"labels": RNG.integers(0, 5, 64)}
    )
    tuned = tune(
        model, data, TuneSettings(loss="ce", epochs=3, batch_size=16), hook=KeepZeros(model)
    ).model
    assert digest(tuned) != digest(model)
    assert sparsity(tuned).weight_zeros == sparsity(model).weight_zeros


def test_a_rate_for_an_unknown_weight_is_rejected() -> None:
    with pytest.raises(UsageError, match="'w9', which is not a weight"):
        PruneAndSplice(mlp(3, 2), SurgerySettings(rates={"w9": 1.0}))


def accuracy(model: Model, x: np.ndarray, y: np.ndarray) -> float:
    return float((Session(model).run({"x": x})["y"].argmax(1) == y).mean())


class Operated(NamedTuple):
    """A dense network, its sparse version, and digits that neither has seen."""

    dense: Model
    sparse: Model
    x: np.ndarray
    y: np.ndarray


@pytest.fixture(scope="module")
def operated() -> Operated:
    """scikit-learn's digits, 64-300-100-10 as in the paper's smaller network."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1200], order[1200:]
    data = Samples({"x": x[train]}, {"labels": y[train]})
    dense = tune(mlp(64, 300, 100, 10), data, TuneSettings(loss="ce", epochs=20)).model
    hook = PruneAndSplice(dense, SurgerySettings(c_rate=3.1, rates={"w2": 1.0}, stop_step=800))
    settings = TuneSettings(loss="kd", steps=1600, lr=2e-3, weight_decay=0.3)
    return Operated(
        dense, tune(dense, data, settings, teacher=dense, hook=hook).model, x[test], y[test]
    )


@pytest.mark.slow
def test_twenty_times_fewer_weights_cost_at_most_one_point(operated: Operated) -> None:
    found = sparsity(operated.sparse)
    assert found.weights - found.weight_zeros <= found.weights / 20
    assert (
        accuracy(operated.sparse, operated.x, operated.y)
        >= accuracy(operated.dense, operated.x, operated.y) - 0.01
        > 0.94
    )


@pytest.mark.slow
def test_dead_channels_are_cut_exactly(operated: Operated, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=operated.x)
    data = open_data(tmp_path / "x.npz", Session(operated.sparse).inputs, samples=256)
    context = Context(analyze(operated.sparse), data)
    dead = dead_channels(context, constants=True)
    sizes = {n: context.analysis.group(n).size for n in dead}
    kept = {n: tuple(np.setdiff1d(np.arange(sizes[n]), d).tolist()) for n, d in dead.items()}
    plan = Plan(context.analysis.digest, kept, sizes)
    smaller = bias(context.analysis, plan, cut(context.analysis, plan), context)
    assert sum(len(d) for d in dead.values()) >= 100
    expected = Session(operated.sparse).run({"x": operated.x})["y"]
    np.testing.assert_allclose(
        Session(smaller).run({"x": operated.x})["y"], expected, atol=1e-5 * np.abs(expected).max()
    )
    assert sum(w.array().size for w in smaller.weights.values()) < 0.8 * sum(
        w.array().size for w in operated.dense.weights.values()
    )
