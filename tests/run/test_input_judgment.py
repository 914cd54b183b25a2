"""Judgment of inputs before any work: wrong preprocessing is named, right preprocessing is not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from graph_text import net

import onnxprune
from onnxprune import demo
from onnxprune.analysis.walk import analyze
from onnxprune.cli.common import recipe_from
from onnxprune.data.dataset import open_data
from onnxprune.data.presets import PRESETS
from onnxprune.errors import DataError
from onnxprune.events import Event
from onnxprune.ir.io import load
from onnxprune.run.adapter import analyze_for, open_data_for, open_labels
from onnxprune.run.input_judgment import judge_inputs
from onnxprune.run.label_judgment import judge_labels
from onnxprune.run.pipeline import make_plan
from onnxprune.run.recipe import Recipe

IMAGENET_255 = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 3, 8, 8] x) => (float[n, 8] y) {{
    c = Conv <kernel_shape=[3, 3]> (x, w{bias})
    {norm}
    r = Relu (b)
    p = GlobalAveragePool (r)
    y = Flatten (p)
}}
"""


def images(count: int = 40) -> np.ndarray:
    """Return images of blobs, uint8, whose channels differ."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 2, 2, 3)).repeat(4, 1).repeat(4, 2)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return models for ImageNet's normalization, with and without BatchNormalization, and data."""
    folder = tmp_path_factory.mktemp("judged")
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    scaled = (images() / 255 - PRESETS["imagenet"]["mean"]) / PRESETS["imagenet"]["std"]
    windows = np.lib.stride_tricks.sliding_window_view(scaled, (3, 3), (1, 2))
    outputs = np.einsum("nhwcij,ocij->nhwo", windows, weight).reshape(-1, 8)
    mean, std = outputs.mean(0).astype(np.float32), outputs.std(0).astype(np.float32)
    one = np.ones(8, np.float32)
    files = {"data": str(folder / "images.npz")}
    for name, bias, norm, weights in (
        ("norm", "", "b = BatchNormalization (c, one, zero, mean, variance)", {}),
        ("folded", ", bias", "b = Identity (c)", {"w": weight / std[:, None, None, None]}),
    ):
        model = onnx.parser.parse_model(MODEL.format(bias=bias, norm=norm))
        values = {"w": weight, "one": one, "zero": 0 * one, "mean": mean, "variance": std**2}
        values |= {"bias": 0.5 * one - mean / std, **weights}
        used = {tensor for node in model.graph.node for tensor in node.input}
        for tensor in used & values.keys():
            array = values[tensor].astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, tensor))
        files[name] = str(folder / f"{name}.onnx")
        onnx.save(model, files[name])
    np.savez(files["data"], x=images())
    return files


def judge(model: str, data: str, **options: Any) -> str:
    """Return the findings about the inputs as one text."""
    recipe = Recipe.of({"data": data, **options})
    analysis = analyze_for(model, recipe)
    return "\n".join(judge_inputs(analysis, open_data_for(analysis.model, recipe)))


@pytest.mark.parametrize("model", ["norm", "folded"])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"preprocess": "imagenet"}, ""),
        ({"preprocess": "imagenet-255"}, ""),
        ({"preprocess": "clip"}, ""),
        (IMAGENET_255, "nearly constant"),
        ({"preprocess": "imagenet", "scale": 1}, "mean and --std are of pixels from 0 to 1"),
    ],
)
def test_wrong_numbers_are_named(
    files: dict[str, str], model: str, options: dict[str, Any], text: str
) -> None:
    found = judge(files[model], files["data"], **options)
    assert text in found if text else found == ""


def test_raw_pixels_are_named_with_the_preset_that_fits(files: dict[str, str]) -> None:
    assert "imagenet fits" in judge(files["norm"], files["data"], preprocess="none")
    assert "raw 8-bit pixels" in judge(files["folded"], files["data"], preprocess="none")


def test_float_arrays_are_judged_without_naming_options(
    files: dict[str, str], tmp_path: Path
) -> None:
    for scale, text in ((1.0, "raw 8-bit pixels"), (0.0, "nearly constant")):
        np.savez(tmp_path / "f.npz", x=images().transpose(0, 3, 1, 2) * np.float32(scale) + 0)
        assert text in judge(files["folded"], str(tmp_path / "f.npz"))


def test_images_of_a_single_color_are_named(files: dict[str, str], tmp_path: Path) -> None:
    colors = images()[:, :1, :1].repeat(8, 1).repeat(8, 2)
    np.savez(tmp_path / "f.npz", x=colors)
    found = judge(files["norm"], str(tmp_path / "f.npz"), preprocess="imagenet")
    assert found == "every image of input 'x' is of a single color; check the data"


@pytest.mark.parametrize("command", ["optimize", "plan"])
@pytest.mark.parametrize("value", [None, 0, 128])
def test_equal_inputs_are_refused_before_any_stage(
    files: dict[str, str], tmp_path: Path, command: str, value: int | None
) -> None:
    equal = images(1).repeat(40, 0) if value is None else np.full((40, 8, 8, 3), value, np.uint8)
    np.savez(tmp_path / "f.npz", x=equal)
    recipe = Recipe.of({"data": str(tmp_path / "f.npz")})
    events: list[Event] = []
    with pytest.raises(DataError, match=r"all 40 inputs of .*f.npz.* are equal"):
        if command == "plan":
            make_plan(files["norm"], recipe, events.append)
        else:
            onnxprune.optimize(files["norm"], recipe=recipe, on_event=events.append)
    assert {event.stage for event in events} <= {"", "load", "analyze"}


def test_synthetic_inputs_are_not_judged(files: dict[str, str]) -> None:
    recipe = Recipe()
    analysis = analyze_for(files["norm"], recipe)
    assert judge_inputs(analysis, open_data_for(analysis.model, recipe)) == ()


def test_warning_comes_before_scoring_and_is_in_the_report(tmp_path: Path) -> None:
    model, data = str(demo.files()[0]), str(tmp_path / "pixels.npz")
    np.savez(data, images=images()[..., :1])
    events: list[Event] = []
    options = {"mean": 123.675, "std": 58.395, "criterion": "l2", "repair": "none"}
    options |= {"data": data, "samples": 40, "engine": "none", "allocate": "uniform"}
    result = onnxprune.optimize(model, on_event=events.append, **options)
    states = [(event.stage, event.state) for event in events]
    assert states.index(("", "warning")) < states.index(("score", "begin"))
    assert "nearly constant" in result.report.warnings[0]


def test_model_near_chance_on_labels_is_named(tmp_path: Path) -> None:
    model, _, evaluation = map(str, demo.files())
    with np.load(evaluation) as file:
        arrays = dict(file)
    arrays["labels"] = (arrays["labels"] + 1) % 10
    np.savez(tmp_path / "shifted.npz", **arrays)
    for path, text in ((evaluation, ""), (str(tmp_path / "shifted.npz"), "near chance")):
        recipe = Recipe.of({"metric": "top1", "labeled": path})
        analysis = analyze_for(model, recipe)
        found = "\n".join(judge_labels(analysis, open_labels(analysis.model, recipe), recipe))
        assert text in found if text else found == ""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"preprocess": "imagenet"}, ""),
        (IMAGENET_255, "nearly constant"),
        ({"preprocess": "none"}, "raw 8-bit pixels"),
        ({"preprocess": "imagenet", "order": "bgr", "metric": "top1"}, "expects RGB"),
    ],
)
def test_wrong_preprocessing_of_a_trained_model_is_named(
    zoo: Path, options: dict[str, Any], text: str
) -> None:
    labeled = str(zoo / "data/cifar10_test_4000.npz")
    data = str(zoo / "data/cifar10_field_1000.npz")
    recipe = Recipe.of({"data": data, "labeled": labeled, **options})
    analysis = analyze_for(str(zoo / "cifar10_resnet20.onnx"), recipe)
    inputs = open_data_for(analysis.model, recipe)
    labels = open_labels(analysis.model, recipe)
    found = [*judge_inputs(analysis, inputs), *judge_labels(analysis, labels, recipe)]
    assert text in "\n".join(found) if text else found == []


@pytest.mark.parametrize(
    ("chosen", "option"), [({}, "--preprocess imagenet"), ({"preprocess": "unit"}, None)]
)
def test_a_scale_that_nobody_chose_is_compared_with_presets_above_chance(
    tmp_path: Path, chosen: dict[str, Any], option: str | None
) -> None:
    # class 1 if red is above 0, which it is on all images unless a mean is subtracted
    onnx.save(
        net(
            "float[n,3,4,4] x | float[3,2] w = {-5,5, 0,0, 0,0} "
            "| p = GlobalAveragePool(x); f = Flatten(p); y = Gemm(f, w) | float[n,2] y"
        ),
        tmp_path / "m.onnx",
    )
    labels = (np.arange(80) % 4 > 0).astype(np.int64)
    pixels = np.full((80, 4, 4, 3), 128, np.uint8)
    pixels[..., 0] = np.where(labels, 200, 60)[:, None, None]
    np.savez(tmp_path / "d.npz", x=pixels, labels=labels)
    recipe = Recipe.of({"metric": "top1", "labeled": str(tmp_path / "d.npz"), **chosen})
    analysis = analyze_for(str(tmp_path / "m.onnx"), recipe)
    found = judge_labels(analysis, open_labels(analysis.model, recipe), recipe)
    assert [f"with {option} it is 1" in text for text in found] == ([True] if option else [])


def test_preset_is_overridden_by_given_options_and_by_later_ones(tmp_path: Path) -> None:
    assert Recipe.of({"preprocess": "imagenet", "scale": 1}).scale == 1
    recipe = Recipe.of({"preprocess": "imagenet"})
    assert recipe.mean == (0.485, 0.456, 0.406) and recipe.but({"preprocess": "unit"}).mean == (0,)
    file = tmp_path / "r.toml"
    file.write_text(f"mean = {json.dumps(list(IMAGENET_255['mean']))}\nstd = [2.0]\n")
    given = recipe_from(str(file), {"preprocess": "imagenet", "std": "3"})
    assert given.mean == (0.485, 0.456, 0.406) and given.std == (3,)


def test_unknown_preset_is_refused_with_those_that_exist() -> None:
    with pytest.raises(onnxprune.OnnxpruneError, match="minus-one-one"):
        Recipe.of({"preprocess": "imagenette"})


def test_metric_that_does_not_fit_the_labels_ends_the_run_before_scoring() -> None:
    model, data, evaluation = map(str, demo.files())
    events: list[Event] = []
    options = {"data": data, "labeled": evaluation, "engine": "none"}
    with pytest.raises(onnxprune.OnnxpruneError, match="miou|masks"):
        onnxprune.optimize(model, metric="miou", on_event=events.append, **options)
    assert "score" not in {event.stage for event in events}


def test_full_disk_ends_the_run_before_scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(onnxprune.OnnxpruneError, match="MB free"):
        onnxprune.optimize(str(demo.files()[0]), tmp_path / "o.onnx", engine="none")


@pytest.mark.parametrize("batch", [1, "n"])
def test_one_class_for_all_inputs_is_named_whatever_the_batch_size(
    tmp_path: Path, batch: int | str
) -> None:
    model = net(
        f"float[{batch},3,4,4] x | float[48,8] w, float[8] b = {{0, 0, 50, 0, 0, 0, 0, 0}} "
        f"| f = Flatten(x); y = Gemm(f, w, b) | float[{batch},8] y"
    )
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.standard_normal((24, 3, 4, 4)).astype(np.float32))
    data = open_data(
        tmp_path / "x.npy",
        {"x": ([int(batch) if batch == "1" else batch, 3, 4, 4], "tensor(float)")},
    )
    (finding,) = judge_inputs(analyze(load(model)), data)
    assert "inputs give class 2 at output 'y'" in finding
