"""Synthetic inputs fit the model's types and shapes."""

from __future__ import annotations

import numpy as np
from data_cases import rejects, values

from onnxprune.data.dataset import open_data, synthetic
from onnxprune.errors import UsageError


def test_synthetic_inputs_fit_types_and_shapes():
    inputs = {
        "image": (["batch", 3, "h", "w"], "tensor(float)"),
        "half": (["batch", 5], "tensor(float16)"),
        "ids": (["batch", "seq"], "tensor(int64)"),
        "mask": (["batch", "past + seq"], "tensor(bool)"),
        "past": (["batch", 2, "past", 64], "tensor(double)"),
    }
    data = synthetic(inputs, samples=5)
    batches = list(data.batches(4))
    assert [len(b["ids"]) for b in batches] == [4, 1] and data.samples == 5
    assert {n: (a.shape[1:], a.dtype.name) for n, a in batches[0].items()} == {
        "image": ((3, 128, 128), "float32"),
        "half": ((5,), "float16"),
        "ids": ((32,), "int64"),
        "mask": ((64,), "bool"),
        "past": ((2, 32, 64), "float64"),
    }
    image = batches[0]["image"]
    assert (
        abs(image.mean()) < 0.02 and abs(image.std() - 1) < 0.02
    )  # 196,608 normal numbers: 5 sigma is 0.011
    assert set(np.unique(batches[0]["ids"])) == {0, 1}
    assert len(np.unique(image[:, 0, 0, 0])) == 4
    assert (
        "no data" in data.warning
        and open_data(None, inputs).warning
        == data.warning
        == open_data("synthetic", inputs).warning
    )
    again, other = synthetic(inputs, samples=5), synthetic(inputs, samples=5, seed=1)
    np.testing.assert_array_equal(values(again, "image"), values(data, "image"))
    assert again.fingerprint() == data.fingerprint() != other.fingerprint()
    assert values(synthetic({"x": (["N", 3, 9, 9], "tensor(uint8)")})).max() == 255


def test_shape_overrides():
    inputs = {"x": (["N", 3, "h", None], "tensor(float)"), "y": (["N", "h"], "tensor(float)")}
    data = synthetic(inputs, samples=6, shapes={"x": (2, 3, 7, 9)})
    assert [(b["x"].shape, b["y"].shape) for b in data.batches(4)] == [((2, 3, 7, 9), (2, 7))] * 3
    data = synthetic(inputs, samples=6, shapes={"x": (-1, 3, 7, 9)})
    assert [len(b["x"]) for b in data.batches(4)] == [4, 2]
    for shapes, code, words in (
        ({"x": (1, 4, 7, 9)}, "shape-override", ("1x4x7x9", "Nx3xhx?")),
        ({"x": (1, 3, 7)}, "shape-override", ("rank 3", "4")),
        ({"x": (1, 3, 0, 9)}, "shape-override", ("1x3x0x9",)),
        ({"x": (1, 3, 7, 9), "y": (1, 8)}, "shape-override", ("'h'", "7")),
        ({"z": (1,)}, "unknown-input", ("'z'",)),
    ):
        with rejects(code, *words, kind=UsageError):
            synthetic(inputs, shapes=shapes)


def test_fixed_batch_gives_at_least_one_batch():
    (batch,) = synthetic({"x": ([8, 3], "tensor(float)")}, samples=1).batches(1)
    assert batch["x"].shape == (8, 3)
