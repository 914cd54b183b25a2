"""Joint refits: partition into blocks, gradients, and the error on held-out inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_text import net
from repair_reference import Repaired

from onnxprune.analysis.walk import analyze
from onnxprune.data.dataset import synthetic
from onnxprune.ir.io import load
from onnxprune.repair import joint, least_squares
from onnxprune.repair.blocks import partition
from onnxprune.repair.fits import prepare_fits
from onnxprune.run.adapter import input_types
from onnxprune.statistics.segmented_run import SegmentedRun

STEM = (
    "float[n,3,8,8] x | float[8,3,3,3] w0, float[8] b0, float[12,8,3,3] w1, float[12] b1, "
    "float[8,12,3,3] w2, float[8] b2, "
)
BLOCK = (
    "a = Conv<pads=[1,1,1,1]>(x, w0, b0); r = Relu(a); h = Conv<pads=[1,1,1,1]>(r, w1, b1); "
    "k = Relu(h); c = Conv<pads=[1,1,1,1]>(k, w2, b2); d = Add(c, r); s = Relu(d); "
)
TAIL = "float[8,8,1,1] w3, float[8] b3, float[8,8,3,3] w4"
RESIDUAL = f"{STEM}{TAIL} | {BLOCK}e = Conv(s, w3, b3); f = Relu(e); y = Conv(f, w4)"
STRIDED = (
    f"{STEM}float[16,4,3,3] w3, float[16,6,2,2] w4, float[6] b4 | "
    f"{BLOCK}e = Conv<strides=[2,2],pads=[1,1,1,1],group=2>(s, w3); f = LeakyRelu(e); "
    "y = ConvTranspose<strides=[2,2]>(f, w4, b4)"
)
NORMALIZED = (
    f"{STEM}float[8,8,1,1] w3, float[8] g, float[8] o, float[8] m, float[8] v, "
    "float[6,8,1,1] w4, float[6] b4 | "
    f"{BLOCK}e = Conv(s, w3); q = BatchNormalization(e, g, o, m, v); f = Relu(q); "
    "y = Conv(f, w4, b4)"
)
PRODUCTS = (
    "float[n,6,10] x | float[10,12] w0, float[12] b0, float[12,10] w1, float[10,12] w2, "
    "float[12] b2, float[12,7] w3 | "
    "p = MatMul(x, w0); a = Add(p, b0); r = Relu(a); q = MatMul(r, w1); t = Sigmoid(q); "
    "u = MatMul(t, w2); z = Add(u, b2); f = Relu(z); y = MatMul(f, w3)"
)


def partitioned(text: str) -> list[Any]:
    """Return the blocks of an unpruned graph."""
    analysis = analyze(load(net(text)))
    model, fits = prepare_fits(analysis, analysis.model, analysis.removed({}))
    data = synthetic(input_types(analysis.model), samples=2, seed=0)
    return partition(SegmentedRun(model, list(data.batches(2))), fits)


def outs(block: Any) -> list[str]:
    """Return the outputs of a block's linear nodes."""
    return [f.linear.out for f in block.fits]


def test_a_residual_block_is_one_block() -> None:
    first, second = partitioned(RESIDUAL)
    assert (outs(first), first.entries, first.exits) == (["a", "h", "c"], ("x",), ("s",))
    assert (outs(second), second.entries, second.exits) == (["e", "y"], ("s",), ("y",))


def test_a_chain_is_divided_into_pairs_not_counting_depthwise_nodes() -> None:
    weights = (
        "float[8,3,1,1] a, float[8,1,3,3] b, float[6,8,1,1] c, float[5,6,1,1] d, float[4,5,1,1] e"
    )
    blocks = partitioned(
        f"float[n,3,8,8] x | {weights} | p = Conv(x, a); q = Conv<group=8>(p, b); "
        "r = Conv(q, c); s = Conv(r, d); y = Conv(s, e)"
    )
    assert [outs(b) for b in blocks] == [["p", "q", "r"], ["s", "y"]]


def test_the_largest_of_equally_few_activations_is_the_exit() -> None:
    blocks = partitioned(
        "float[n,3,8,8] x | float[8,3,3,3] a, float[6,8,3,3] b, float[9,6] c | "
        "p = Conv(x, a); q = Conv(p, b); r = Relu(q); s = GlobalAveragePool(r); "
        "t = Flatten(s); y = Gemm<transB=1>(t, c)"
    )
    assert blocks[0].exits == ("r",)


@pytest.fixture
def joint_refits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the joint refits of a repair, not run, at their starting weights."""

    def collect(text: str) -> list[joint.JointRefit]:
        refits: list[joint.JointRefit] = []

        def keep(refit: joint.JointRefit, most: int) -> bool:
            refit.model = refit.model.edit()  # the repair's own is used up at its end
            refits.append(refit)
            return False

        with monkeypatch.context() as patch:
            patch.setattr(joint.JointRefit, "run", keep)
            patch.setattr(joint, "POSITIONS_PER_INPUT", 10**6)
            Repaired.of(text, samples=64, held_out=8)
        return refits

    return collect


@pytest.mark.parametrize(
    "text",
    [RESIDUAL, STRIDED, NORMALIZED, PRODUCTS],
    ids=["residual", "strided", "normalized", "products"],
)
def test_gradients_are_differences_of_the_error(
    text: str, joint_refits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By central differences along random directions, away from the start; without kinks."""
    monkeypatch.setattr(joint, "POSITIONS_PER_INPUT", 10**6)
    refits, rng = (
        joint_refits(text.replace("LeakyRelu(", "Sigmoid(").replace("Relu(", "Sigmoid(")),
        np.random.default_rng(0),
    )
    assert len(refits) == 2
    for refit in refits:
        chunks = range(refit.samples.fitted)
        refit.scale_outputs(chunks)
        start = np.concatenate([b.coordinates() for b in refit.layers])
        start += 0.1 * np.abs(start).mean() * rng.standard_normal(start.shape)
        gradient = refit.gradient(start, chunks, rng)
        for _ in range(4):
            direction = rng.standard_normal(start.shape)
            step = 2e-3 * np.linalg.norm(start) / np.linalg.norm(direction)
            difference = (
                refit.error(start + step * direction, chunks)
                - refit.error(start - step * direction, chunks)
            ) / (2 * step)
            assert difference == pytest.approx(
                gradient @ direction,
                rel=2e-2,
                abs=2e-3 * float(np.linalg.norm(gradient) * np.linalg.norm(direction)),
            )


@pytest.mark.parametrize(
    "text",
    [RESIDUAL, STRIDED, NORMALIZED, PRODUCTS],
    ids=["residual", "strided", "normalized", "products"],
)
def test_starting_coordinates_give_the_present_weights(text: str, joint_refits: Any) -> None:
    for refit in joint_refits(text):
        refit.scale_outputs(range(1))
        start = np.concatenate([b.coordinates() for b in refit.layers])
        for name, values in refit.parameters(start).items():
            present = refit.model.weights[name].array()
            np.testing.assert_allclose(
                values, present, atol=2e-5 * max(float(np.abs(present).max()), 1e-3)
            )


def test_the_error_on_other_inputs_decreases() -> None:
    """Against the same repair without joint refits, on the same samples."""
    plain, refined = (Repaired.of(RESIDUAL, samples=256, held_out=held) for held in (0, 32))
    other = synthetic(input_types(plain.original), samples=64, seed=99)

    def error(repaired: Repaired) -> float:
        fresh = Repaired(repaired.analysis, repaired.plan, repaired.before, repaired.after, other)
        return fresh.error(repaired.after)

    assert error(refined) < 0.95 * error(plain)


def test_a_descent_stops_when_the_held_out_error_rises(
    joint_refits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the check with the least error are returned."""
    refit = joint_refits(RESIDUAL)[0]
    start, errors, seen = np.zeros(3), [0.9, 0.8, 0.85, 0.1], []

    def error(z: np.ndarray, chunks: range) -> float:
        seen.append(z)
        return errors[len(seen) - 1]

    monkeypatch.setattr(refit, "error", error)
    monkeypatch.setattr(refit, "gradient", lambda *arguments: np.ones(3))
    best = refit.descend(start, 1.0, 1.0, 1.0, 1)
    assert len(seen) == 3 and best is seen[1]
    # nothing is gained: the start itself
    seen.clear()
    assert refit.descend(start, 0.5, 1.0, 1.0, 1) is start and len(seen) == 1


def test_a_result_worse_on_held_out_samples_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long steps uphill leave the weights as they were."""
    with monkeypatch.context() as patch:
        patch.setattr(joint, "refit_block", lambda *arguments: False)
        patch.setattr(least_squares, "refit_block", lambda *arguments: False)
        before = Repaired.of(RESIDUAL, samples=64, held_out=8)
    monkeypatch.setattr(joint, "LEARNING_RATE", -100 * joint.LEARNING_RATE)
    after = Repaired.of(RESIDUAL, samples=64, held_out=8)
    for name, weight in before.after.weights.items():
        np.testing.assert_array_equal(
            weight.array(), after.after.weights[name].array(), err_msg=name
        )


@pytest.mark.parametrize(
    "text",
    ["float[2,6,10] x |" + PRODUCTS.split("|", 1)[1], PRODUCTS],
    ids=["fixed batch", "any batch"],
)
def test_few_samples_are_all_fitted(text: str) -> None:
    """Without held-out samples present is no joint refit."""
    analysis = analyze(load(net(text)))
    data = synthetic(input_types(analysis.model), samples=4, seed=1)
    batches, held = least_squares._split_held_out(
        list(data.batches(2)), data.inputs.batch is not None
    )
    assert held == 0 and len(batches) == 2


def test_an_eighth_of_the_samples_is_held_out() -> None:
    batches, held = least_squares._split_held_out(
        [{"x": np.arange(32), "one": np.ones(())}, {"x": np.arange(32, 64), "one": np.ones(())}],
        False,
    )
    assert held == 1 and [len(b["x"]) for b in batches] == [8, 24, 32]
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in batches]), np.arange(64))
    batches, held = least_squares._split_held_out([{"x": np.arange(2)} for _ in range(40)], True)
    assert held == 5 and len(batches) == 40
