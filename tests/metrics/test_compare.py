"""Comparison of two models: standard errors against exact formulas, classes and costs."""

from __future__ import annotations

import math

import numpy as np
import onnx.parser
import pytest

from onnxprune.data.labeled import open_labeled
from onnxprune.errors import UsageError
from onnxprune.ir.io import load
from onnxprune.metrics import MetricOptions, find_metric
from onnxprune.metrics.base import bootstrap_error, resample
from onnxprune.metrics.compare import compare, compare_metrics, mcnemar
from onnxprune.types import Cost

BOOTSTRAP = 0.15  # relative; 400 draws give the deviation to about 4 %


def pair(seed: int = 0, n: int = 300):
    """Two top-1 metrics on the same samples, the second a little worse."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    scores = np.eye(4)[labels] + rng.normal(0, 0.6, (n, 4))
    metrics = []
    for noise in (0, 0.6):
        metric = find_metric("top1")
        metric.update({"y": scores + rng.normal(0, noise, scores.shape)}, {"labels": labels})
        metrics.append(metric)
    return metrics, labels


def test_mcnemar_and_paired_error_are_exact():
    (a, b), _ = pair()
    found = compare_metrics(a, b)
    first, second = a.outcomes(), b.outcomes()
    only_a, only_b = int((first > second).sum()), int((second > first).sum())
    assert (found.only_a, found.only_b) == (only_a, only_b) and found.difference == pytest.approx(
        (only_b - only_a) / 300
    )
    tail = sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1)) / 2 ** (
        only_a + only_b
    )
    assert found.mcnemar == pytest.approx(min(1, 2 * tail)) and mcnemar(0, 0) == 1
    assert found.standard_error == pytest.approx(np.std(second - first, ddof=1) / math.sqrt(300))
    drawn = resample([a, b], 400, np.random.default_rng(1))
    assert bootstrap_error([y.value - x.value for x, y in drawn]) == pytest.approx(
        found.standard_error, rel=BOOTSTRAP
    )
    assert found.interval[0] < found.difference < found.interval[1]


def test_paired_error_is_smaller_than_unpaired():
    (a, b), _ = pair(1)
    unpaired = math.hypot(a.result().standard_error, b.result().standard_error)
    assert compare_metrics(a, b).standard_error < unpaired


def test_classes_and_subset():
    (a, b), labels = pair(2)
    found = compare_metrics(a, b, [1, 3], names=["n", "one"])
    chosen = np.isin(labels, [1, 3])
    assert found.subset_a == pytest.approx(
        a.outcomes()[chosen].mean()
    ) and found.a.value == pytest.approx(a.outcomes().mean())
    assert [(r.index, r.name) for r in found.classes] == [(1, "one"), (3, "3")]
    row = found.classes[0]
    mine = labels == 1
    assert (
        row.a == pytest.approx(a.outcomes()[mine].mean())
        and row.count == mine.sum()
        and row.difference == pytest.approx(row.b - row.a)
    )
    assert row.standard_error == pytest.approx(
        np.std((b.outcomes() - a.outcomes())[mine]) / math.sqrt(mine.sum()), rel=BOOTSTRAP
    )
    assert found.mcnemar is None and [r[0] for r in found.rows()] == [
        "top1",
        "top1 of 2 classes",
        "one",
        "3",
    ]
    with pytest.raises(UsageError, match="no sample of class 9"):
        compare_metrics(a, b, [9])


def test_equal_models_do_not_differ():
    (a, _), _ = pair()
    found = compare_metrics(a, a)
    assert (
        found.difference == 0
        # not 0: they may differ on further samples
        and found.standard_error == pytest.approx(1 / 301)
        and found.interval == (0, 0)
        and found.mcnemar == 1
    )


@pytest.mark.parametrize("name", ["miou", "coco"])
def test_metrics_that_are_no_mean_have_standard_errors(name):
    rng = np.random.default_rng(3)
    metrics = [
        find_metric(name, MetricOptions(classes=3, decoder=lambda o, n: list(o["y"])))
        for _ in range(2)
    ]
    for _ in range(12):
        if name == "miou":
            labels = {"masks": rng.integers(0, 3, (1, 4, 4))}
            outputs = [
                {"y": np.where(rng.random((1, 4, 4)) < p, labels["masks"], 0)} for p in (0.9, 0.6)
            ]
        else:
            corner = rng.uniform(0, 0.4, (3, 2))
            labels = {
                "boxes": np.c_[np.zeros(3), np.arange(3), corner + 0.25, np.full((3, 2), 0.5)]
            }
            outputs = [
                {"y": np.c_[corner + s, corner + 0.5, rng.random(3), np.arange(3)][None]}
                for s in (0.0, rng.choice([0.0, 0.1]))
            ]
        for metric, output in zip(metrics, outputs, strict=False):
            metric.update(output, labels)
    found = compare_metrics(*metrics)
    assert (
        found.difference < 0 < found.standard_error
        and found.interval[0] < found.difference < found.interval[1]
    )
    assert found.mcnemar is None and len(found.classes) == 3 and "12 samples" in found.warnings[0]
    assert found.as_dict()["a"]["metric"] == name


READ = (
    '<ir_version: 8, opset_import: ["" : 13]> agraph (X) => (float[n,m] y) { y = Cast<to = 1>(x) }'
)


@pytest.mark.parametrize(
    ("a", "b", "texts"),
    [
        ("float[N,3] x", "float[N,3] z", ("x float ?x3", "z float ?x3")),
        ("float[N,3] x", "float[N,4] x", ("x float ?x3", "x float ?x4")),
        ("float[N,3] x", "float[3] x", ("x float ?x3", "x float 3")),
        ("float[N,3] x", "double[N,3] x", ("x float ?x3", "x double ?x3")),
        ("float[1,3] x", "float[2,3] x", ("x float 1x3", "x float 2x3")),
        ("float[N,3] x", "float[N,3] x, float z", ("x float ?x3", "x float ?x3, z float")),
    ],
)
def test_models_of_different_inputs_are_refused(tmp_path, a, b, texts):
    np.savez(tmp_path / "d.npz", x=np.eye(3, dtype=np.float32), labels=np.arange(3))
    data = open_labeled(tmp_path / "d.npz", {"x": (["N", 3], "tensor(float)")})
    models = [
        load(onnx.parser.parse_model(READ.replace("X", x).replace("(x)", f"({x[-1]})")))
        for x in (a, b)
    ]
    with pytest.raises(UsageError, match="different inputs") as caught:
        compare(*models, data, "top1")
    assert "A reads {}, B reads {};".format(*texts) in caught.value.message


def test_dynamic_lengths_agree_with_any(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.eye(3, dtype=np.float32), labels=np.arange(3))
    data = open_labeled(tmp_path / "d.npz", {"x": (["N", 3], "tensor(float)")})
    models = [
        load(onnx.parser.parse_model(READ.replace("X", x)))
        for x in ("float[N,3] x", "float[3,m] x", "float[] x")
    ]
    assert all(compare(models[0], m, data, "top1").difference == 0 for m in models[:2])


def test_models_end_to_end(tmp_path):
    text = (
        '<ir_version: 8, opset_import: ["" : 13]> agraph (float[N,3] x) => (float[N,3] y) '
        "<float[3] k = {KK}> { y = Add(x, k) }"
    )
    a, b = (
        load(onnx.parser.parse_model(text.replace("KK", k)))
        for k in ("0.0, 0.0, 0.0", "0.0, 0.0, 9.0")
    )
    np.savez(
        tmp_path / "d.npz",
        x=np.eye(3, dtype=np.float32)[[0, 1, 2, 2]],
        labels=np.array([0, 1, 2, 2]),
    )
    data = open_labeled(tmp_path / "d.npz", {"x": (["N", 3], "tensor(float)")})
    found = compare(a, b, data, "top1", cost=lambda m: Cost(10, 20, 80, 5), batch_size=3)
    assert (
        found.a.value == 1
        and found.b.value == 0.5
        and found.only_a == 2
        and found.cost_a.macs == 10
    )
    assert [r[:4] for r in found.rows()][:1] == [("macs", 10, 10, 0)] and [
        r.b for r in found.classes
    ] == [0, 0, 1]
    assert found.as_dict()["cost"]["b"] == {
        "macs": 10,
        "params": 20,
        "bytes": 80,
        "activation_bytes": 5,
    }
