"""Segmented runs: joining batches later, changing weights, and memory estimates."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.ir.io import Model, load
from onnxprune.ir.weights import from_array
from onnxprune.repair import least_squares
from onnxprune.statistics.segmented_run import FLOAT_BYTES, SegmentedRun

TEXT = """<ir_version: 8, opset_import: ["": 13]> net (float[n,3,6,6] x) => (float[n,8,6,6] y)
<float[8,3,3,3] v, float[8,8,1,1] w> {
    a = Conv<pads=[1,1,1,1]>(x, v)
    r = Relu(a)
    p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r)
    s = Resize<mode="nearest">(p, , scales)
    b = Conv(s, w)
    y = Add(b, r)
}"""


@pytest.fixture
def model() -> Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        TEXT.replace("float[8,8,1,1] w>", "float[8,8,1,1] w, float[4] scales>")
    )
    weights = {"v": (8, 3, 3, 3), "w": (8, 8, 1, 1)}
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    )
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    )
    return load(proto)


@pytest.fixture
def batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((2, 3, 6, 6)).astype(np.float32)} for _ in range(5)]


@pytest.mark.parametrize("place", range(6))
def test_joined_batches_have_the_same_activations(
    model: Model, batches: list[dict[str, np.ndarray]], place: int
) -> None:
    along, joined = SegmentedRun(model, batches), SegmentedRun(model, batches[:2])
    for run in (along, joined):
        run.advance(place, keep=["a"])
    joined.join(batches[2:])
    assert len(joined.state) == len(batches)
    for one, other in zip(along.state, joined.state, strict=False):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_joined_batches_run_with_the_present_weights(
    model: Model, batches: list[dict[str, np.ndarray]]
) -> None:
    changed = model.edit()
    run = SegmentedRun(changed, batches[:1])
    changed.weights["v"] = from_array(np.zeros((8, 3, 3, 3), np.float32))
    run.advance(2)
    run.join(batches[1:])
    assert all(not state["r"].any() for state in run.state)


def test_bytes_are_the_peak_from_here_on(
    model: Model, batches: list[dict[str, np.ndarray]]
) -> None:
    run = SegmentedRun(model, batches[:1])
    full, pooled, image = 8 * 36, 8 * 9, 3 * 36
    most = [max(image, full, full + pooled, 2 * full)] * 5 + [2 * full, full]
    for place in range(6):
        run.advance(place)
        assert run.bytes_from_here() == FLOAT_BYTES * most[place]


def test_batches_wait_until_memory_allows(
    model: Model, batches: list[dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, pruned = (SegmentedRun(model, batches[:1]) for _ in range(2))
    a_batch = 2 * (original.bytes_from_here() + pruned.bytes_from_here())
    for limit, expected in ((1, 1), (3 * a_batch, 3), (4 * a_batch, 3), (5 * a_batch, 5)):
        monkeypatch.setattr(least_squares, "LIVE_BYTES", limit)
        waiting = batches[len(pruned.state) :]
        least_squares._admit_waiting(waiting, original, pruned)
        assert len(original.state) == len(pruned.state) == expected == len(batches) - len(waiting)
