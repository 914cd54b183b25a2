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
