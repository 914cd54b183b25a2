"""Labels of padded images, and of images that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
from label_sets import MODEL, SIZES, boxes_of, coco, expected, picture, pictures, voc, yolo

from onnxprune.data.labeled import open_labeled
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError


def test_letterbox_moves_boxes_and_pads_masks(tmp_path):
    """A 40x60 image in 32x32: 21 rows of it, 5 rows of gray above and 6 below."""
    options = {"preprocess": Preprocess(resize="letterbox")}
    file = coco(tmp_path / "c")
    picture(tmp_path / "c" / "val2017" / "a.png", SIZES[0], 200)
    data = open_labeled(file, MODEL, **options)
    batch = next(iter(data.labeled_batches(1)))
    rows = batch.feeds["x"][0, 0, :, 16] * 255
    assert np.allclose(rows, [114] * 5 + [200] * 21 + [114] * 6)
    # of the 32 rows that the model sees, 21 show the 40 of the image
    corners = expected()[0].copy()
    corners[:, [2, 4]] = (corners[:, [2, 4]] * 21 + 5) / 32
    assert np.allclose(boxes_of(file, **options)[0], corners)
    assert batch.labels["image_size"].tolist() == [[round(32 / 21 * 40), 60]]
    assert batch.labels["boxes"][:, 7].tolist() == [5.5, 5.5]  # no box is cut
    # a dynamic side is padded to a multiple of 32, here the 30 columns of the second image
    free = {"x": (["N", 3, "h", "w"], "tensor(float)")}
    shapes = [b.feeds["x"].shape for b in open_labeled(file, free, **options).labeled_batches(1)]
    assert shapes == [(1, 3, 64, 64), (1, 3, 64, 32)]
    picture(tmp_path / "m" / "images" / "a.png", SIZES[0])
    picture(tmp_path / "m" / "masks" / "a.png", SIZES[0], 3, mode="L")
    (batch,) = open_labeled(tmp_path / "m", MODEL, **options).labeled_batches(1)
    mask = batch.labels["masks"][0]
    assert mask.shape == (61, 60) and mask[:, 0].tolist() == [255] * 10 + [3] * 40 + [255] * 11


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n and no more"])
def test_damaged_images_are_left_out_with_their_labels(tmp_path, damage):
    pytest.importorskip("yaml")
    table = tmp_path / "table"
    pictures(table)
    (table / "labels.csv").write_text("filename,label\na.png,0\nb.png,1\n")
    for k, name in enumerate(("a.png", "b.png")):
        picture(tmp_path / "classes" / str(k) / name, SIZES[k])
        picture(tmp_path / "masks" / "images" / name, SIZES[k])
        picture(tmp_path / "masks" / "masks" / name, SIZES[k], 3, mode="L")
    coco(tmp_path / "coco")
    yolo(tmp_path / "yolo")
    voc(tmp_path / "voc")
    for place in (p for p in tmp_path.iterdir() if p.name != "masks"):
        files = sorted(place.rglob("*.png"))
        files[0].write_bytes(damage)
        data = open_labeled(place, MODEL)
        assert (data.samples, len(data.skipped)) == (1, 1) and "a.png" in data.skipped[0]
        assert data.describe().endswith(", 1 unreadable skipped")
        (batch,) = data.labeled_batches(8)
        labels = batch.labels.get("labels", batch.labels.get("boxes", np.zeros((1, 8)))[:, 1])
        assert labels.tolist() == [1], place
        files[1].write_bytes(damage)
        with pytest.raises(DataError, match="any of 2 selected images"):
            open_labeled(place, MODEL)
    (tmp_path / "masks" / "images" / "a.png").write_bytes(damage)
    (batch,) = open_labeled(tmp_path / "masks", MODEL).labeled_batches(8)
    assert batch.labels["masks"].shape == (1, *SIZES[1])
