"""Metrics against the evaluation script of the trained models, on real data."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

SAME = 1e-6  # both evaluate the same float32 outputs
ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "top1": "top1",
    "top5": "top5",
    "coco": "mAP",
    "map50": "mAP50",
    "miou": "mIoU",
    "pixel_acc": "pixel_acc",
    "psnr_y": "psnr_y",
}


@pytest.fixture
def trained(zoo, monkeypatch):
    """(reader of the folder, its evaluation script)."""
    monkeypatch.syspath_prepend(str(ROOT))
    reader = pytest.importorskip("benchmarks.zoo")
    if not (zoo / "eval.py").is_file():
        pytest.skip(f"no eval.py in {zoo}")
    spec = importlib.util.spec_from_file_location("zoo_eval", zoo / "eval.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return reader, script


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit", "metrics"),
    [
        ("cifar10_resnet20", 500, ["top1"]),
        ("imagenet_mobilenetv2_1.0_dq", 40, ["top1", "top5"]),
        ("vww_mobilenetv1_0.25", 64, ["top1"]),
        ("coco_nanodet_m", 32, ["coco", "map50"]),
        ("coco_yolofastestv2", 32, ["coco", "map50"]),
        ("camvid_espnet", 3, ["miou", "pixel_acc"]),
        ("sr_imdn_x2", 2, ["psnr_y"]),
    ],
)
def test_figures_equal_the_script(zoo, trained, name, limit, metrics):
    if name.startswith("coco"):
        pytest.importorskip("cv2")
    reader, script = trained
    entry = reader.open_zoo(zoo)[name]
    file = entry.fields["eval_data"][0]
    entry = replace(entry, fields={**entry.fields, "eval_data": [file]})
    theirs = script.evaluate(str(zoo), dict(entry.fields), None, limit, 1)[file]
    for metric in metrics:
        ours = reader.score(entry, limit=limit, metric=metric)[file]
        assert (
            ours.value == pytest.approx(theirs[NAMES[metric]], abs=SAME) and ours.n == theirs["n"]
        )
        assert ours.standard_error is not None


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other", "limit", "metric"),
    [
        ("cifar10_resnet20", "cifar10_resnet56", 300, "top1"),
        ("camvid_espnet", "camvid_espnet_bn", 2, "miou"),
        ("coco_yolofastestv2", "coco_yolofastestv2_bn", 24, "coco"),
    ],
)
def test_comparisons_equal_the_script_and_cover_each_class(
    zoo, trained, name, other, limit, metric
):
    """All classes and a chosen subset of trained models; detection a second time by pycocotools."""
    from onnxprune.data.labeled import open_labeled
    from onnxprune.ir.io import load
    from onnxprune.ir.runtime import Session
    from onnxprune.metrics.compare import compare

    if metric == "coco":
        pytest.importorskip("cv2"), pytest.importorskip("pycocotools")
    reader, script = trained
    entries = reader.open_zoo(zoo)
    entry, file = entries[name], entries[name].fields["eval_data"][0]
    a, b = load(entry.path), load(entries[other].path)
    data = open_labeled(reader.Samples(entry, file), Session(a).inputs)
    data = replace(data, chosen=data.chosen[:limit])
    batch = 1 if metric == "miou" else 32
    found = compare(a, b, data, metric, options=entry.options, batch_size=batch)
    for score, which in ((found.a, name), (found.b, other)):
        theirs = script.evaluate(
            str(zoo), {**entries[which].fields, "eval_data": [file]}, None, limit, 1
        )[file]
        assert score.value == pytest.approx(theirs[NAMES[metric]], abs=SAME)
    assert [r.index for r in found.classes] == sorted(found.a.per_class) and len(found.classes) > 5
    chosen = [r.index for r in found.classes[:2]]
    part = compare(a, b, data, metric, chosen, options=entry.options, batch_size=batch)
    assert [(r.a, r.b) for r in part.classes] == [(r.a, r.b) for r in found.classes[:2]]
    if metric == "coco":
        plain = replace(entry.options, curve="coco")
        ours, official = (
            compare(a, b, data, m, options=plain, batch_size=batch)
            for m in ("coco", "coco-official")
        )
        assert [(r.index, r.a, r.b) for r in official.classes] == [
            (r.index, pytest.approx(r.a), pytest.approx(r.b)) for r in ours.classes
        ]


@pytest.mark.zoo
def test_calibration_inputs_equal_the_script(zoo, trained, tmp_path):
    reader, script = trained
    entries = reader.open_zoo(zoo)
    for name in ("cifar10_resnet20", "camvid_espnet"):
        theirs = script.calib_inputs(str(zoo), dict(entries[name].fields), 3)
        assert np.array_equal(
            reader.calibration(entries[name], 3),
            np.concatenate([next(iter(f.values())) for f in theirs]),
        )
    path = reader.calibration_file(entries["sr_imdn_x2"], 8, tmp_path / "sr.npz")
    with np.load(path) as file:
        assert file[entries["sr_imdn_x2"].input[0]].shape == (8, 3, reader.PATCH, reader.PATCH)


@pytest.mark.zoo
def test_fidelity_of_a_detector_with_its_decoder(zoo, trained):
    pytest.importorskip("cv2")
    from onnxprune.ir.io import load
    from onnxprune.ir.weights import from_array
    from onnxprune.metrics.fidelity import fidelity

    reader, _ = trained
    entry = reader.open_zoo(zoo)["coco_yolofastestv2"]
    model, inputs = load(entry.path), reader.calibration(entry, 4)
    changed = model.edit()
    rng = np.random.default_rng(0)
    for name, weight in model.weights.items():
        if len(weight.shape) == 4:
            changed.weights[name] = from_array(
                (weight.array() * (1 + 0.05 * rng.normal(size=weight.shape))).astype(np.float32)
            )

    class Data:
        def batches(self, batch_size):
            for one in inputs:
                yield {entry.input[0]: one[None]}

    same = fidelity(model, model, Data(), decoder=entry.options.decoder)
    assert (
        same.box_agreement == 1 and same.relative_error == 0 and set(same.outputs) == {"p16", "p32"}
    )
    other = fidelity(model, changed, Data(), decoder=entry.options.decoder)
    assert (
        0 < other.box_agreement < 1
        and other.relative_error > 0
        and other.outputs["p16"].location_agreement < 1
    )
