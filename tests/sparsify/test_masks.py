"""Masks against counts by hand and against torch's own pruning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.sparsify.masks import choose, count_zeros

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "amount, count, zeros", [(0.5, 5, 2), (0.5, 7, 4), (0.3, 5, 2), (0.25, 10, 2), (0, 9, 0)]
)
def test_halves_are_rounded_to_even(amount: float, count: int, zeros: int) -> None:
    assert count_zeros(amount, count) == zeros


def test_tensor_scope_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    layer = torch.nn.Conv2d(6, 5, 3)
    prune.l1_unstructured(layer, "weight", 0.3)
    score = layer.weight_orig.detach().abs().numpy().reshape(1, 5, -1)
    assert (
        choose({"w": score}, 0.3, "tensor")["w"].reshape(5, 6, 3, 3)
        == layer.weight_mask.numpy().astype(bool)
    ).all()


@given(st.floats(0, 0.99), st.sampled_from(["tensor", "output", "global"]))
def test_removed_weights_score_at_most_as_much_as_kept_ones(amount: float, scope: str) -> None:
    scores = {"a": RNG.random((2, 3, 8)), "b": RNG.random((1, 4, 9))}
    kept = choose(scores, amount, scope)
    pairs = {
        "tensor": [(scores[n], kept[n]) for n in scores],
        "output": [
            (s, k)
            for n in scores
            for s, k in zip(
                scores[n].reshape(-1, scores[n].shape[-1]),
                kept[n].reshape(-1, scores[n].shape[-1]),
                strict=False,
            )
        ],
        "global": [
            (
                np.concatenate([s.ravel() for s in scores.values()]),
                np.concatenate([k.ravel() for k in kept.values()]),
            )
        ],
    }[scope]
    for score, keep in pairs:
        assert (~keep).sum() == round(amount * keep.size)
        assert score[~keep].max(initial=-1) <= score[keep].min(initial=2)


def test_two_of_four_input_channels_are_kept_per_tap() -> None:
    outputs, channels, taps = 3, 10, 9
    score = RNG.random((1, outputs, channels * taps))
    kept = choose({"w": score}, 0.5, "2:4", {"w": taps})["w"].reshape(outputs, channels, taps)
    for o in range(outputs):
        for t in range(taps):
            for first in (0, 4):
                four = score.reshape(outputs, channels, taps)[o, first : first + 4, t]
                assert set(np.flatnonzero(kept[o, first : first + 4, t])) == set(
                    np.argsort(four)[2:]
                )
    assert kept[:, 8:].all(), "the last two channels are no full four"


@pytest.mark.parametrize(
    "amount, scope, hint",
    [
        (1.0, "tensor", "0 <= amount < 1"),
        (0.5, "layer", "none of tensor"),
        (0.5, "4:2", "keeps 4 of 2"),
    ],
)
def test_invalid_choices_are_explained(amount: float, scope: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        choose({"w": np.ones((1, 2, 4))}, amount, scope)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.floats(0, 0.99))
def test_of_equal_scores_the_first_are_removed(scores: list[int], amount: float) -> None:
    count = count_zeros(amount, len(scores))
    expected = sorted(sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count])
    kept = choose({"w": np.array(scores, float).reshape(1, 1, -1)}, amount, "tensor")["w"]
    assert np.flatnonzero(~kept.reshape(-1)).tolist() == expected
