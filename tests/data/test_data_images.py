"""Images as calibration data: geometry, color and scaling, compared with numpy."""

from __future__ import annotations

import numpy as np
import pytest
from data_cases import IMAGE, TOKENS, rejects, save_npz, values

from onnxprune.data.dataset import Preprocess, open_data
from onnxprune.errors import MissingExtraError, UsageError


def test_images_are_normalized_by_the_formula(photos):
    full = {"x": (["N", 3, 20, 16], "tensor(float)")}
    p = Preprocess(scale=0.5, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0), post=3.0, order="bgr")
    x = values(open_data(photos, full, preprocess=p))
    assert x.shape == (6, 3, 20, 16) and x.dtype == np.float32
    ramp = np.arange(16) * 16
    np.testing.assert_allclose(x[:, 0], np.full((6, 20, 16), (255 * 0.5 - 1) / 2 * 3), rtol=1e-6)
    np.testing.assert_allclose(
        x[:, 1], np.broadcast_to((ramp * 0.5 - 2) / 4 * 3, (6, 20, 16)), rtol=1e-6
    )
    assert sorted(np.round((x[:, 2, 0, 0] / 3 * 8 + 3) * 2).astype(int)) == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("shape", "p", "expected"),
    [
        (["N", 3, 8, 8], Preprocess(), (3, 8, 8)),
        (["N", 8, 6, 3], Preprocess(), (8, 6, 3)),
        (["N", 3, "H", "W"], Preprocess(), (3, 20, 16)),
        (["N", None, None, None], Preprocess(layout="nhwc"), (20, 16, 3)),
        (["N", 3, 8, 8], Preprocess(resize=10), (3, 8, 8)),
        (["N", 3, "H", "W"], Preprocess(resize=8), (3, 10, 8)),
        (["N", 3, "H", "W"], Preprocess(resize=(9, 7)), (3, 9, 7)),
        (["N", 3, "H", "W"], Preprocess(crop=(12, 10)), (3, 12, 10)),
        (["N", 3, 6, 6], Preprocess(resize=(12, 10), crop=6), (3, 6, 6)),
        (["N", 1, 8, 8], Preprocess(), (1, 8, 8)),
        (["N", 4, 8, 8], Preprocess(), (4, 8, 8)),
    ],
)
def test_geometry_and_layout(photos, shape, p, expected):
    assert values(open_data(photos, {"x": (shape, "tensor(float)")}, preprocess=p)).shape == (
        6,
        *expected,
    )


def test_one_number_resizes_the_shorter_side_and_crops_the_center(photos):
    """20x16 becomes 16x13, of that rows 4..12 and columns 2..10, as in torchvision."""
    image = pytest.importorskip("PIL.Image")
    data = open_data(photos, IMAGE, preprocess=Preprocess(resize=13))
    for index, x in zip(data.chosen, values(data), strict=True):
        with image.open(data.source.files[index]) as picture:
            reference = np.asarray(picture.resize((13, 16), image.Resampling.BILINEAR))[4:12, 2:10]
        np.testing.assert_array_equal(
            np.round(x * 255).astype(np.uint8), reference.transpose(2, 0, 1)
        )


def test_uint8_models_take_pixels(photos):
    inputs = {"x": (["N", 20, 16, 3], "tensor(uint8)")}
    x = values(open_data(photos, inputs, preprocess=Preprocess(order="bgr")))
    assert x.dtype == np.uint8 and (x[..., 0] == 255).all()
    with rejects("preprocess-uint8", "uint8", kind=UsageError):
        open_data(photos, inputs, preprocess=Preprocess(mean=3.0))


def test_uint8_arrays_of_images_are_preprocessed(tmp_path, photos):
    p = Preprocess(mean=0.5, std=0.25, order="bgr")
    files = sorted(photos.rglob("[0-9].png"))
    image = pytest.importorskip("PIL.Image")
    pixels = np.stack([np.asarray(image.open(f)) for f in files])
    by_file = open_data(photos, IMAGE, preprocess=p)
    for array in (pixels, pixels.transpose(0, 3, 1, 2)):
        for name in ("x", "images"):
            by_array = open_data(save_npz(tmp_path, **{name: array}), IMAGE, preprocess=p)
            np.testing.assert_array_equal(values(by_array), values(by_file))
    gray = {"x": ([None, 1, 20, 16], "tensor(float)")}
    np.testing.assert_allclose(
        values(open_data(save_npz(tmp_path, x=pixels[..., 0]), gray)).max(), 50 / 255, rtol=1e-6
    )


def test_images_equal_the_zoos_own_protocol(zoo):
    """Bit for bit what eval.py of the trained models feeds, with no resize."""
    images = np.load(zoo / "data" / "cifar10_field_1000.npz")["images"]
    mean, std, scale = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0.00392156862745098
    data = open_data(
        zoo / "data" / "cifar10_field_1000.npz",
        {"input": (["N", 3, 32, 32], "tensor(float)")},
        samples=64,
        preprocess=Preprocess(mean=tuple(mean), std=tuple(std)),
    )
    x = images[list(data.chosen)].astype(np.float32)
    x = (x * np.float32(scale) - np.array(mean, np.float32)) / np.array(std, np.float32)
    np.testing.assert_array_equal(values(data, "input"), x.transpose(0, 3, 1, 2))


def test_images_that_do_not_fit_are_rejected(photos, tmp_path):
    with rejects("data-shape", "3x10", "8x8"):
        open_data(photos, IMAGE, preprocess=Preprocess(resize=(3, 10)))
    with rejects("data-shape", "20x16", "30x30"):
        open_data(
            photos, {"x": (["N", 3, 30, 30], "tensor(float)")}, preprocess=Preprocess(crop=30)
        )
    with rejects("data-shape", "'x'", "16"):
        open_data(photos, {"x": (["N", 16, 8, 8], "tensor(float)")})
    with rejects("data-names", "'ids'", "'mask'"):
        open_data(photos, TOKENS)
    with rejects("preprocess-number", "2 numbers", "3 channels", kind=UsageError):
        open_data(photos, IMAGE, preprocess=Preprocess(mean=(1.0, 2.0)))
    whole = (photos / "class0" / "0.png").read_bytes()
    for content in (b"", b"GIF89a", whole[: len(whole) // 2]):
        (photos / "class0" / "2.png").write_bytes(content)
        with rejects("data-image", "2.png"):
            open_data(photos / "class0" / "2.png", IMAGE)
        data = open_data(photos, IMAGE)
        assert data.samples == 5 and len(data.skipped) == 1
        assert "2.png" in data.skipped[0] and "1 unreadable skipped" in data.describe()
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((20, 16), np.uint16)).save(photos / "class0" / "2.png")
    with rejects("data-image", "2.png", "8 bits"):
        open_data(photos, IMAGE)


def test_images_that_are_all_unreadable_are_an_error(photos):
    for file in photos.rglob("*.png"):
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with rejects("data-image", "any of 6 selected images", "git lfs pull"):
        open_data(photos, IMAGE)


def test_without_pillow_the_extra_is_named(photos, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r'pip install "onnxprune\[images\]"'):
        open_data(photos, IMAGE)


@pytest.mark.parametrize(
    ("settings_", "code"),
    [
        ({"order": "gbr"}, "unknown-order"),
        ({"layout": "nhcw"}, "unknown-layout"),
        ({"interp": "linear"}, "unknown-interp"),
        ({"std": 0.0}, "preprocess-number"),
        ({"std": (1.0, 0.0, 1.0)}, "preprocess-number"),
        ({"mean": float("nan")}, "preprocess-number"),
        ({"mean": "a"}, "preprocess-number"),
        ({"scale": (1.0, 2.0)}, "preprocess-number"),
        ({"resize": 0}, "preprocess-size"),
        ({"resize": (3, 4, 5)}, "preprocess-size"),
        ({"crop": 2.5}, "preprocess-size"),
        ({"resize": "letterbox", "crop": 8}, "preprocess-size"),
        ({"crop": "letterbox"}, "preprocess-size"),
    ],
)
def test_preprocess_rejects_invalid_values(settings_, code):
    with rejects(code, kind=UsageError):
        Preprocess(**settings_)


def test_preprocess_is_the_same_however_it_is_spelled():
    assert Preprocess(mean=1, std=[2, 3, 4], resize=[5, 6]) == Preprocess(
        mean=(1.0,), std=(2.0, 3.0, 4.0), resize=(5, 6)
    )
    assert hash(Preprocess(std=[1, 2, 3])) == hash(Preprocess(std=(1.0, 2.0, 3.0)))
