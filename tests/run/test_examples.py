"""Examples of a run: pictures decoded back, and predictions of every kind."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnxprune.data.dataset import open_data
from onnxprune.data.labeled import open_labeled
from onnxprune.data.preprocess import Preprocess
from onnxprune.ir.io import Model, load
from onnxprune.run.adapter import input_types
from onnxprune.run.examples import NOT_FINITE, collect_examples
from onnxprune.run.pictures import STRETCHED
from onnxprune.run.recipe import Recipe

Image = pytest.importorskip("PIL.Image")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def model(body: str, output: str) -> Model:
    """Return a model of images 3x8x8."""
    text = f"{HEADER} m (float[n, 3, 8, 8] x) => ({output}) {{ {body} }}"
    return load(onnx.parser.parse_model(text).SerializeToString())


def decode(uri: str) -> np.ndarray:
    """Return the pixels of a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


MEANS = model("y = ReduceMean <axes = [2, 3], keepdims = 0> (x)", "float[n, 3] y")
NEGATED = model("z = Neg (x) y = ReduceMean <axes = [2, 3], keepdims = 0> (z)", "float[n, 3] y")


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(),
        Preprocess(order="bgr", scale=1.0, mean=(104, 117, 123), std=(50, 60, 70), post=0.5),
    ],
    ids=["unit", "bgr"],
)
def test_inputs_are_decoded_back_and_classes_compared(
    tmp_path: Path, preprocess: Preprocess
) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.arange(12) % 3)
    labeled = open_labeled(tmp_path / "a.npz", input_types(MEANS), preprocess=preprocess)
    rows = collect_examples(MEANS, NEGATED, labeled, Recipe())
    assert len(rows) == 8 and rows[0].name == "input 0" and rows[-1].name == "input 11"
    assert np.array_equal(decode(rows[-1].picture), PIXELS[11]) and not rows[-1].note
    assert rows[-1].label == "2" and rows[-1].input.startswith("x 3x8x8, ")
    for row in rows:
        first, last = row.before["classes"][0][0], row.after["classes"][-1][0]
        # the largest of the means is the smallest of the negated ones
        assert (row.kind, row.agreement, first) == ("classes", 0.0, last)
        # scores that are no probabilities are those before a softmax
        assert sum(share for _, share in row.after["classes"]) == pytest.approx(1, abs=1e-3)


def test_values_outside_of_pixels_are_shown_stretched(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(12, 3, 8, 8)))
    data = open_data(tmp_path / "a.npy", input_types(MEANS))
    rows = collect_examples(MEANS, MEANS, data, Recipe())
    assert rows[0].note == STRETCHED and rows[0].agreement == 1.0 and not rows[0].label


def test_masks_count_pixels_and_images_are_returned(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    maps = model("a = Neg (x) y = Concat <axis = 1> (x, a)", "float[n, 6, 8, 8] y")
    data = open_data(tmp_path / "a.npy", input_types(maps), samples=2)
    row = collect_examples(maps, maps, data, Recipe())[0]
    assert row.kind == "mask" and row.agreement == 1.0
    assert sum(share for _, share in row.before["classes"]) == pytest.approx(1, abs=1e-3)
    assert decode(row.before.picture).shape[:2] == (8, 8)
    images = model("y = Identity (x)", "float[n, 3, 8, 8] y")
    row = collect_examples(images, images, data, Recipe())[0]
    assert row.kind == "image" and np.array_equal(decode(row.after.picture), decode(row.picture))


def test_models_whose_outputs_are_not_finite_do_not_agree(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    broken = model("z = Sub (x, x) d = Div (z, z) y = ReduceMax <axes = [2, 3]> (d)", "float[n] y")
    data = open_data(tmp_path / "a.npy", input_types(broken))
    row = collect_examples(broken, broken, data, Recipe())[0]
    assert (row.kind, row.note, row.agreement) == ("", NOT_FINITE, None)


def test_outputs_that_are_no_tensors_are_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    split = model("y = SplitToSequence <axis = 1> (x)", "seq(float[n, 1, 8, 8]) y")
    data = open_data(tmp_path / "a.npy", input_types(split))
    rows = collect_examples(split, split, data, Recipe())
    assert len(rows) == 8 and rows[0].picture and not rows[0].kind


def test_boxes_are_those_above_the_score(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS[:1])
    boxes = "{0.1, 0.1, 0.5, 0.5, 0.9, 3.0, 0.0, 0.0, 1.0, 1.0, 0.1, 1.0}"
    body = f"y = Constant <value = float[1, 2, 6] {boxes}> ()"
    detector = model(body, "float[1, 2, 6] y")
    data = open_data(tmp_path / "a.npy", input_types(detector))
    row = collect_examples(detector, detector, data, Recipe())[0]
    assert row.kind == "boxes" and row.agreement == 1.0
    assert [list(box) for box in row.before["boxes"]] == [[0.1, 0.1, 0.5, 0.5, 0.9, 3.0]]


def test_labels_have_the_form_of_the_predictions(tmp_path: Path) -> None:
    rows = [[0, 3, 0.5, 0.5, 0.5, 0.25], [2, 1, 0.25, 0.25, 0.5, 0.5], [2, 2, 0.5, 0.5, 1, 1]]
    boxes = "{0.1, 0.1, 0.5, 0.5, 0.9, 3.0}"
    detector = model(f"y = Constant <value = float[1, 1, 6] {boxes}> ()", "float[1, 1, 6] y")
    np.savez(tmp_path / "b.npz", images=PIXELS[:3], boxes=np.array(rows, np.float64))
    data = open_labeled(tmp_path / "b.npz", input_types(detector))
    found = [
        [list(box) for box in row.truth["boxes"]] if row.truth else []
        for row in collect_examples(detector, detector, data, Recipe())
    ]
    second = [[0, 0, 0.5, 0.5, 1, 1], [0, 0, 1, 1, 1, 2]]
    assert found == [[[0.25, 0.375, 0.75, 0.625, 1, 3]], [], second]
    maps = model("a = Neg (x) y = Concat <axis = 1> (x, a)", "float[n, 6, 8, 8] y")
    masks = np.full((1, 8, 8), 5, np.uint8)
    masks[0, :4] = 255  # not scored
    np.savez(tmp_path / "m.npz", images=PIXELS[:1], masks=masks)
    data = open_labeled(tmp_path / "m.npz", input_types(maps))
    (row,) = collect_examples(maps, maps, data, Recipe())
    assert [list(pair) for pair in row.truth.classes] == [[5, 1.0]]
    image = Image.open(io.BytesIO(base64.b64decode(row.truth.picture.split(",")[1])))
    opacity = np.asarray(image.convert("RGBA"))[..., 3]
    assert (opacity[:4] == 0).all() and (opacity[4:] > 0).all()
