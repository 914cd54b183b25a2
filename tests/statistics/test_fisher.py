"""Output Fisher information against torch autograd and against measured divergence."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from onnxprune.analysis.walk import analyze
from onnxprune.autodiff import LABELS, MOMENTS, Loss, Place, feeds_of, gradient_model
from onnxprune.data.dataset import synthetic
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.statistics.fisher import Fisher, output_fisher

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 6, 6] x) => (float[N, 5] y)
<float[8, 3, 3, 3] a, float[6, 8, 1, 1] b, float[6, 5] c, float[6] s> {
    ha = Conv<pads = [1, 1, 1, 1]>(x, a)
    ra = Relu(ha)
    hb = Conv<strides = [2, 2]>(ra, b)
    p = GlobalAveragePool(hb)
    f = Flatten(p)
    g = %s(f)
    y = MatMul(g, c)
}"""


def network(activation: str = "Tanh") -> Model:
    proto = parser.parse_model(TEXT % activation)
    rng = np.random.default_rng(0)
    from onnx import numpy_helper

    shapes = {"a": (8, 3, 3, 3), "b": (6, 8, 1, 1), "c": (6, 5), "s": (6,)}
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    )
    return load(proto)


def test_products_equal_autograd() -> None:
    torch = pytest.importorskip("torch")
    from onnxprune.tune.bridge import to_module

    model = analyze(network()).model
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 3, 6, 6)).astype(np.float32)}
    places = [
        Place("ha", 1, form=MOMENTS),
        Place("hb", 1, form=MOMENTS),
        Place("y", -1, form=MOMENTS),
    ]
    gradient = gradient_model(model, places, [Loss(LABELS, "y")], {"x": (4, 3, 6, 6)}, 4)
    labels = np.array([0, 4, 2, 1])
    extra = feeds_of(gradient.feeds, np.random.default_rng(2), labels)
    outputs = Session(gradient.model).run({**feeds, **extra})
    module = to_module(model)
    values = module({"x": torch.from_numpy(feeds["x"])}, outputs=["ha", "hb", "y"])
    total = torch.nn.functional.cross_entropy(
        values["y"], torch.from_numpy(labels), reduction="sum"
    )
    grads = dict(zip(values, torch.autograd.grad(total, list(values.values())), strict=False))
    for place in places:
        flat = grads[place.tensor].movedim(place.axis, 0).flatten(1).double()
        np.testing.assert_allclose(
            outputs[gradient.outputs[place]], (flat @ flat.T).numpy(), rtol=1e-4, atol=1e-5
        )
        assert gradient.sizes[place] == flat.numel()


def test_half_the_trace_is_the_divergence_of_a_small_change() -> None:
    """For a small random change of the last node's outputs, within the noise of drawn labels."""
    analysis = analyze(network())
    data = synthetic({"x": (("N", 3, 6, 6), "tensor(float)")}, samples=128, seed=0)
    fisher = output_fisher(analysis, data, [("y", 1)], seed=0)
    assert fisher is not None
    session = Session(analysis.model)
    change = 1e-2 * np.random.default_rng(5).standard_normal(5)
    expected, count = 0.0, 0
    for feeds in data.batches(16):
        y = session.run(feeds)["y"].astype(np.float64)
        p, q = (np.exp(z - z.max(1, keepdims=True)) for z in (y, y + change))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        expected += float((p * np.log(p / q)).sum())
        count += len(y)
    predicted = 0.5 * fisher["y"].positions * change @ fisher["y"].products @ change
    assert fisher["y"].positions == 1
    assert predicted == pytest.approx(expected / count, rel=0.25)


def test_none_without_a_gradient() -> None:
    analysis = analyze(network("Hardmax"))
    data = synthetic({"x": (("N", 3, 6, 6), "tensor(float)")}, samples=8, seed=0)
    assert output_fisher(analysis, data, [("ha", 1)]) is None


def test_deterministic_by_seed() -> None:
    analysis = analyze(network())
    data = synthetic({"x": (("N", 3, 6, 6), "tensor(float)")}, samples=16, seed=0)
    first, second = (
        output_fisher(analysis, data, [("ha", 1), ("hb", 1)], seed=3) for _ in range(2)
    )
    assert first is not None and second is not None
    assert (
        isinstance(first["ha"], Fisher)
        and first["ha"].positions == 36
        and first["hb"].positions == 9
    )
    assert all(np.array_equal(first[n].products, second[n].products) for n in first)
