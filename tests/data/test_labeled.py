"""Labeled data: samples and labels of every kind of source, in any batching."""

from __future__ import annotations

import io

import numpy as np
import pytest

from onnxprune.data.labeled import open_labeled
from onnxprune.errors import DataError

N = 7
IMAGE = {"x": (["N", 3, 8, 6], "tensor(float)")}
VECTOR = {"x": (["N", 4], "tensor(float)")}


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (N, 8, 6, 3)).astype(np.uint8)


def boxes() -> np.ndarray:
    return np.array(
        [
            [0, 1, 0.5, 0.5, 0.2, 0.2],
            [2, 0, 0.4, 0.4, 0.1, 0.1],
            [2, 3, 0.6, 0.6, 0.3, 0.3],
            [6, 1, 0.5, 0.5, 0.5, 0.5],
        ]
    )


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def whole(data, batch_size):
    """All feeds and labels of a pass, boxes numbered by sample again."""
    feeds, labels, start = [], {}, 0
    for batch in data.labeled_batches(batch_size):
        feeds.append(batch.feeds["x"][: batch.count])
        for name, value in batch.labels.items():
            value = value + np.eye(1, 6) * start if name == "boxes" else value
            labels.setdefault(name, []).append(value)
        start += batch.count
    return np.concatenate(feeds), {n: np.concatenate(v) for n, v in labels.items()}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_npz_of_images(tmp_path, batch_size):
    path = write(
        tmp_path / "d.npz",
        images=pixels(),
        labels=np.arange(N),
        boxes=boxes(),
        masks=pixels()[..., 0],
        notes=np.array(["a"] * N),
        other=np.zeros(3),
    )
    data = open_labeled(path, IMAGE)
    feeds, labels = whole(data, batch_size)
    assert (
        np.array_equal(
            feeds, (pixels().transpose(0, 3, 1, 2) * np.float32(1 / 255)).astype(np.float32)
        )
        and data.samples == N
    )
    assert (
        np.array_equal(labels["labels"], np.arange(N))
        and np.array_equal(labels["boxes"], boxes())
        and np.array_equal(labels["masks"], pixels()[..., 0])
    )
    assert np.array_equal(labels["size"], np.tile([8, 6], (N, 1))) and set(labels) == {
        "labels",
        "boxes",
        "masks",
        "size",
        "image_size",
    }
    assert [set(f) for f in data.batches(3)] == [{"x"}] * 3


def test_blobs_and_arrays_and_folders_agree_with_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    encoded = []
    for k, one in enumerate(pixels()):
        buffer = io.BytesIO()
        image.fromarray(one).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
        folder = tmp_path / "tree" / ("b" if k % 2 else "a")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.png").write_bytes(encoded[-1])
    offsets = np.cumsum([0] + [len(e) for e in encoded])
    blob = write(
        tmp_path / "blob.npz",
        png=np.frombuffer(b"".join(encoded), np.uint8),
        offsets=offsets,
        labels=np.arange(N) % 2,
    )
    feeds, labels = whole(open_labeled(blob, IMAGE), 4)
    arrays = write(tmp_path / "arrays.npz", x=feeds, labels=labels["labels"])
    again, _ = whole(open_labeled(arrays, IMAGE), 4)
    tree, classes = whole(open_labeled(tmp_path / "tree", IMAGE), 4)
    order = [0, 2, 4, 6, 1, 3, 5]
    assert (
        np.array_equal(again, feeds)
        and np.array_equal(tree, feeds[order])
        and np.array_equal(classes["labels"], labels["labels"][order])
    )
    for name, number in (("a", "7"), ("b", "12")):
        (tmp_path / "tree" / name).rename(tmp_path / "tree" / number)
    assert set(whole(open_labeled(tmp_path / "tree", IMAGE), 4)[1]["labels"]) == {7, 12}


def test_fixed_batch_is_filled_and_counted(tmp_path):
    path = write(
        tmp_path / "d.npz", x=np.arange(N * 4, dtype=np.float32).reshape(N, 4), labels=np.arange(N)
    )
    batches = list(open_labeled(path, {"x": ([3, 4], "tensor(float)")}).labeled_batches(32))
    assert [b.count for b in batches] == [3, 3, 1] and all(
        b.feeds["x"].shape == (3, 4) for b in batches
    )
    assert [b.labels["labels"].tolist() for b in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_choice_split_and_fingerprint(tmp_path):
    path = write(tmp_path / "d.npz", x=np.zeros((N, 4), np.float32), labels=np.arange(N))
    data = open_labeled(path, VECTOR)
    first, second = data.split(0.4, seed=1)
    assert sorted(first.chosen + second.chosen) == list(range(N)) and first.samples == 3
    drawn = open_labeled(path, VECTOR, samples=4, seed=3)
    assert (
        drawn.samples == 4 and drawn.chosen == open_labeled(path, VECTOR, samples=4, seed=3).chosen
    )
    assert data.fingerprint() == open_labeled(path, VECTOR).fingerprint() != first.fingerprint()
    assert "7 labeled samples" in data.describe()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.arange(N)}, "must have images"),
        ({"x": np.zeros((N, 4), np.float32)}, "has no labels"),
        (
            {"x": np.zeros((N, 4), np.float32), "labels": np.arange(3)},
            r"labels has shape \(3,\), which does not match the 7",
        ),
        ({"x": np.zeros((N, 4), np.float32), "boxes": np.zeros((2, 4))}, "boxes have shape"),
        ({"images": pixels(), "labels": np.arange(N)}, "one image input"),
    ],
)
def test_labels_that_do_not_fit_are_rejected(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        open_labeled(write(tmp_path / "d.npz", **arrays), VECTOR)


def test_locations_without_labeled_data_are_rejected(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "d.bin").write_text("1")
    bad = write(
        tmp_path / "bad.npz",
        jpeg=np.zeros(10, np.uint8),
        offsets=np.array([0, 10]),
        labels=np.zeros(1, int),
    )
    for place, message in (
        ("none", "does not exist"),
        ("broken.npz", "cannot read"),
        ("d.bin", "labels are an .npz file"),
        (".", "no subfolders"),
    ):
        with pytest.raises(DataError, match=message):
            open_labeled(tmp_path / place, IMAGE)
    pytest.importorskip("PIL")
    with pytest.raises(DataError, match="not an 8-bit image"):
        list(open_labeled(bad, IMAGE).labeled_batches(1))
