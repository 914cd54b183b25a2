"""Losses against their formulas in numpy, float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from onnxprune.errors import UsageError

pytest.importorskip("torch")
import torch

from onnxprune.tune.losses import correlation, cross_entropy, divergence, parse, relative_error

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.standard_normal((2, 12, 7)) * 3


def tensor(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(value))


def test_divergence_is_kullback_leibler_of_the_softened_outputs() -> None:
    p, q = softmax(TEACHER / 4, 1), softmax(STUDENT / 4, 1)
    assert float(divergence(tensor(STUDENT), tensor(TEACHER), 4.0)) == pytest.approx(
        16 * (p * np.log(p / q)).sum(1).mean()
    )


def test_dist_is_one_minus_pearson_over_rows_and_columns() -> None:
    p, q = softmax(TEACHER, 1), softmax(STUDENT, 1)
    rows = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=False)])
    columns = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=False)])
    assert float(correlation(tensor(STUDENT), tensor(TEACHER), 1.0)) == pytest.approx(
        rows + columns
    )


@pytest.mark.parametrize(
    "loss",
    [lambda s, t: divergence(s, t, 4.0), lambda s, t: correlation(s, t, 1.0), relative_error],
)
def test_equal_outputs_have_loss_zero(loss) -> None:
    assert float(loss(tensor(TEACHER), tensor(TEACHER))) == pytest.approx(0, abs=1e-9)


def test_class_axis_is_free() -> None:
    maps = RNG.standard_normal((2, 3, 5, 4, 6))
    flat = [m.transpose(0, 2, 3, 1).reshape(-1, 5) for m in maps]
    assert float(divergence(*map(tensor, maps), 2.0, 1)) == pytest.approx(
        float(divergence(*map(tensor, flat), 2.0))
    )
    assert float(correlation(*map(tensor, maps), 2.0, 1)) == pytest.approx(
        float(correlation(*map(tensor, flat), 2.0))
    )


def test_cross_entropy_ignores_void_labels() -> None:
    labels = RNG.integers(0, 7, 12)
    labels[3], labels[5] = 255, -1
    known = (labels >= 0) & (labels < 7)
    expected = -log_softmax(STUDENT, 1)[known, labels[known]].mean()
    assert float(cross_entropy(tensor(STUDENT), tensor(labels))) == pytest.approx(expected)


def test_parse_reads_weighted_terms() -> None:
    assert parse("ce + 0.5*dist+1e-2*kd") == {"ce": 1.0, "dist": 0.5, "kd": 0.01}


@pytest.mark.parametrize(
    "spec, hint",
    [("dits", "did you mean 'dist'"), ("kd*2", "is not of the form"), ("", "is not of the form")],
)
def test_a_wrong_loss_is_explained(spec: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        parse(spec)
