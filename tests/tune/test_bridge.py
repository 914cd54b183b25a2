"""Torch modules equal onnxruntime for any batch size, and their values are written back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import DataError, ModelError
from onnxprune.ir.io import Model, digest, load
from onnxprune.ir.runtime import Session
from onnxprune.ir.weights import from_array

pytest.importorskip("torch")
import torch

from onnxprune.tune.bridge import as_feeds, to_module, write_back

RTOL = 1e-4  # of the largest output: float32 over up to 60 layers, other summation order
NAMES = [
    "camvid_espnet",
    "camvid_espnet_bn",
    "cifar10_mlp_resnet8",
    "cifar10_resnet20",
    "cifar10_resnet20_bn",
    "cifar10_resnet56",
    "cifar10_resnet56_bn",
    "cifar10_vit_pgd_2_3_16",
    "coco_nanodet_m",
    "coco_yolofastestv2",
    "coco_yolofastestv2_bn",
    "imagenet_mobilenetv2_1.0_dq",
    "imagenet_squeezenet1.1",
    "sr_imdn_x2",
    "vww_mobilenetv1_0.25",
]


def net(seed: int = 0) -> Model:
    """Build a convolution, normalization, scalar of a formula and classifier; names with dots."""
    rng = np.random.default_rng(seed)
    shapes = {
        "a.w": (4, 3, 3, 3),
        "a.b": (4,),
        "scale": (4,),
        "shift": (4,),
        "mean": (4,),
        "var": (4,),
        "fc": (5, 4),
        "fcb": (5,),
    }
    held = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    held["var"] = np.abs(held["var"]) + np.float32(0.5)
    nodes = [
        helper.make_node("Conv", ["x", "a.w", "a.b"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["h", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Mul", ["r", "half"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc", "fcb"], ["y"], transB=1),
    ]
    info = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("x", ["N", 3, 8, 8]), ("y", ["N", 5]))
    ]
    tensors = [numpy_helper.from_array(v, n) for n, v in (held | {"half": np.float32(0.5)}).items()]
    return load(
        helper.make_model(
            helper.make_graph(nodes, "net", info[:1], info[1:], tensors),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=9,
        )
    )


def feeds_of(model: Model, batch: int, spatial: int = 48) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {
        n: [s if isinstance(s, int) else spatial for s in shape[1:]]
        for n, (shape, _) in Session(model).inputs.items()
    }
    return {n: rng.standard_normal((batch, *s)).astype(np.float32) for n, s in shapes.items()}


def largest_error(found: dict, expected: dict) -> float:
    return max(
        float(np.abs(found[n].detach().numpy() - v).max() / np.abs(v).max())
        for n, v in expected.items()
    )


@pytest.mark.zoo
@pytest.mark.parametrize("name", NAMES)
def test_zoo_equals_onnxruntime(zoo: Path, name: str) -> None:
    model = load(zoo / f"{name}.onnx")
    module = to_module(model)
    feeds = feeds_of(model, 1)
    with torch.no_grad():
        found = module(as_feeds(feeds, module))
    assert largest_error(found, Session(model, optimize=False).run(feeds)) < RTOL


@pytest.mark.zoo
def test_a_graph_with_literal_batch_one_takes_any_batch(zoo: Path) -> None:
    """The detector declares batch 1 in its reshapes, once as the outermost axis and once inside."""
    model = load(zoo / "coco_yolofastestv2.onnx")
    module, session, feeds = to_module(model), Session(model), feeds_of(model, 3)
    with torch.no_grad():
        found = module(as_feeds(feeds, module))
    for i in range(3):
        single = session.run({n: v[i : i + 1] for n, v in feeds.items()})
        assert largest_error({n: v[i : i + 1] for n, v in found.items()}, single) < RTOL


def test_parameters_are_the_initializers_by_name() -> None:
    module = to_module(net())
    assert set(module.names) == {"a.w", "a.b", "scale", "shift", "fc", "fcb"}, (
        "limits and the scalars of formulas are no parameters"
    )
    assert set(module.statistics) == {"mean", "var"}
    assert [p is q for p, q in zip(module.parameters(), module.named().values(), strict=False)] == [
        True
    ] * 6


def test_writing_back_unchanged_values_gives_the_same_file() -> None:
    model = net()
    assert digest(write_back(model, to_module(model))) == digest(model)


def test_written_values_are_what_the_module_computes() -> None:
    model = net()
    module = to_module(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    after, feeds = write_back(model, module), feeds_of(model, 4)
    assert after.proto == model.proto, "the graph itself stays"
    assert largest_error(module(as_feeds(feeds, module)), Session(after).run(feeds)) < RTOL


def test_gradient_equals_central_differences() -> None:
    """Against central differences of onnxruntime's own output."""
    model = net()
    module, feeds = to_module(model), feeds_of(model, 2)
    module(as_feeds(feeds, module))["y"].square().sum().backward()
    step = 1e-2
    for name, index in (("a.w", (1, 2, 0, 1)), ("fc", (3, 2)), ("scale", (2,))):
        sums = []
        for sign in (1, -1):
            weights = dict(model.weights)
            value = model.weights[name].array().copy()
            value[index] += sign * step
            weights[name] = from_array(value)
            shifted = Model(model.proto, weights)
            sums.append(float(np.square(Session(shifted).run(feeds)["y"].astype(np.float64)).sum()))
        assert module.named()[name].grad[index] == pytest.approx(
            (sums[0] - sums[1]) / (2 * step), rel=0.02, abs=1e-3
        )


def test_batch_normalization_updates_statistics_in_training_only() -> None:
    model = net()
    module, feeds = to_module(model), feeds_of(model, 8)
    module(as_feeds(feeds, module))
    assert (module.values()["mean"] == model.weights["mean"].array()).all()
    module.train()
    inner = module(as_feeds(feeds, module), ["h", "y"])["h"].detach()
    expected = 0.9 * model.weights["mean"].array() + 0.1 * inner.mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(module.values()["mean"], expected, rtol=1e-5, atol=1e-6)


def test_shared_statistics_are_not_updated() -> None:
    """Two normalizations with one mean (all zero) must not write to it in turn."""
    model = net().edit()
    second = helper.make_node("BatchNormalization", ["r", "scale", "shift", "mean", "var"], ["r2"])
    model.proto.graph.node.insert(3, second)
    model.proto.graph.node[4].input[0] = "r2"
    module = to_module(model).train()
    module(as_feeds(feeds_of(model, 4), module))
    assert (module.values()["mean"] == model.weights["mean"].array()).all()


def test_half_precision_is_tuned_in_float32_and_written_back_as_half() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Cast", ["m"], ["y"], to=onnx.TensorProto.FLOAT16),
        ],
        "half",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, [2, 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, [2, 4])],
        [numpy_helper.from_array(np.ones((3, 4), np.float16), "w")],
    )
    model = load(helper.make_model(graph, ir_version=9))
    module = to_module(model)
    assert module.named()["w"].dtype == torch.float32
    assert write_back(model, module).weights["w"].array().dtype == np.float16


def test_transformed_weights_are_written() -> None:
    model = net()
    module = to_module(model)
    mask = torch.zeros(5, 4)
    module.transform = lambda name, value: value * mask if name == "fc" else value
    assert not write_back(model, module).weights["fc"].array().any()


def test_a_missing_input_is_named() -> None:
    with pytest.raises(DataError, match="reads 'x'"):
        to_module(net())({})


def test_a_failing_node_is_named() -> None:
    with pytest.raises(ModelError, match="Conv node 'h'"):
        to_module(net())({"x": torch.zeros(2, 5, 8, 8)})
