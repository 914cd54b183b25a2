"""Joint selection against exhaustive search and against scores of single weights."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from onnxprune.sparsify.admm import select_jointly
from onnxprune.sparsify.inputs import inverse_diagonal
from onnxprune.sparsify.masks import choose
from onnxprune.sparsify.refit import refit
from onnxprune.statistics.im2col import Moments

COLUMNS, REMOVED = 8, 3


def problem(
    seed: int, outputs: int = 1, columns: int = COLUMNS, groups: int = 1
) -> tuple[np.ndarray, list[Moments]]:
    """Draw weights, and moments of inputs with a mean and three common factors."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(groups):
        x = (
            rng.standard_normal((columns, 3)) @ rng.standard_normal((3, 4000))
            + 0.5 * rng.standard_normal((columns, 4000))
            + rng.standard_normal((columns, 1))
        )
        full = np.concatenate([x, np.ones((1, x.shape[1]))])
        out.append(Moments(full @ full.T, full.sum(1), count=x.shape[1]))
    return rng.standard_normal((groups, outputs, columns)), out


def error(rows: np.ndarray, kept: np.ndarray, moments: list[Moments]) -> float:
    """Return the mean squared change of the outputs after a refit with bias."""
    total = 0.0
    for r, k, m in zip(rows, kept, moments, strict=False):
        bias = np.zeros(len(r))
        new, shift = refit(r, k, m, bias)
        change = np.column_stack([new - r, shift])
        total += float(np.einsum("ij,jk,ik->", change, m.xx / m.count, change))
    return total


def test_joint_selection_is_close_to_the_optimum() -> None:
    joint, single, best = [], [], []
    for seed in range(30):
        rows, moments = problem(seed)
        masks = []
        for removed in combinations(range(COLUMNS), REMOVED):
            masks.append(np.isin(np.arange(COLUMNS), removed, invert=True).reshape(rows.shape))
        best.append(min(error(rows, m, moments) for m in masks))
        joint.append(
            error(
                rows,
                select_jointly(
                    rows,
                    moments,
                    True,
                    lambda s: choose({"w": s}, REMOVED / COLUMNS, "tensor")["w"],
                ),
                moments,
            )
        )
        scores = (
            np.square(rows)
            / inverse_diagonal(moments[0].xx[None, :COLUMNS, :COLUMNS] / moments[0].count, 1e-2)[
                :, None
            ]
        )
        single.append(error(rows, choose({"w": scores}, REMOVED / COLUMNS, "tensor")["w"], moments))
    ours, theirs = (float(np.mean(np.log(np.array(e) / best))) for e in (joint, single))
    assert min(np.array(joint) / best) >= 1 - 1e-9
    assert ours < 0.5 * theirs, (ours, theirs)


@pytest.mark.parametrize("scope", ["tensor", "output", "2:4"])
def test_number_and_pattern_of_zeros_are_kept(scope: str) -> None:
    rows, moments = problem(1, outputs=6, columns=12, groups=2)
    kept = select_jointly(
        rows, moments, False, lambda s: choose({"w": s}, 0.5, scope, {"w": 1})["w"]
    )
    assert int((~kept).sum()) == rows.size // 2
    if scope == "2:4":
        assert (kept.reshape(2, 6, 3, 4).sum(3) == 2).all()
    if scope == "output":
        assert (kept.sum(2) == 6).all()
