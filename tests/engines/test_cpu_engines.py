"""OpenVINO, ncnn and MNN compute what onnxruntime computes, where they are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_nets import residual
from onnx import TensorProto, helper, numpy_helper

from onnxprune.engines import ENGINES
from onnxprune.engines.base import Engine, EngineOptions, random_feeds, static_inputs
from onnxprune.engines.bench_warnings import difference
from onnxprune.engines.ncnn import ENGINE as NCNN
from onnxprune.errors import EngineError
from onnxprune.ir.io import Model, load

AGREES = 1e-4  # relative, float32, different order of summation and Winograd transforms
BF16_AGREES = 0.05  # 8 bits of mantissa
CROWD = ("openvino", "ncnn", "mnn")


@pytest.fixture(params=CROWD)
def engine(request: pytest.FixtureRequest) -> Engine:
    engine: Engine = ENGINES.get(request.param)
    if (reason := engine.available()) is not None:
        pytest.skip(reason)
    return engine


def reference(
    model: Model, feeds: dict[str, np.ndarray], options: EngineOptions
) -> dict[str, np.ndarray]:
    with ENGINES.get("onnxruntime").compile(
        model, EngineOptions(level="off", shapes=options.shapes)
    ) as compiled:
        return compiled.run(feeds)


def test_outputs_times_and_layers(engine: Engine) -> None:
    model, options = residual(20), EngineOptions()
    feeds = random_feeds(static_inputs(model, {}))
    expected = reference(model, feeds, options)
    with engine.compile(model, options) as compiled:
        assert compiled.outputs == ("y",)
        outputs = compiled.run(feeds)
        assert outputs["y"].shape == expected["y"].shape
        assert difference(outputs, expected) <= AGREES
        assert all(ms > 0 for ms in compiled.sample(feeds, 3))
        layers = compiled.profile(feeds, 2)
        assert difference(compiled.run(feeds), expected) <= AGREES, "profiling changed the session"
    if engine.name != "ncnn":
        nodes = [n for layer in layers for n in layer.nodes]
        assert len(nodes) == len(set(nodes)), "a node belongs to one kernel"
        assert {"c0", "c1", "c2"} <= {layer.key for layer in layers}
        assert {"n_c0", "n_c1", "n_c2", "n_g"} <= set(nodes)


def test_a_graph_that_it_does_not_know_is_one_sentence(engine: Engine) -> None:
    model = residual().edit()
    model.proto.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(EngineError) as problem:
        engine.compile(model.freeze(), EngineOptions())
    assert "\n" not in problem.value.message and engine.name in problem.value.message


def test_openvino_pins_float32_and_offers_bfloat16() -> None:
    engine = ENGINES.get("openvino")
    if (reason := engine.available()) is not None:
        pytest.skip(reason)
    model = residual(32)
    feeds = random_feeds(static_inputs(model, {}))
    expected = reference(model, feeds, EngineOptions())
    with engine.compile(model, EngineOptions()) as compiled:
        exact = difference(compiled.run(feeds), expected)
    try:
        with engine.compile(model, EngineOptions(precision="bf16")) as compiled:
            rounded = difference(compiled.run(feeds), expected)
    except EngineError as problem:
        pytest.skip(problem.message)
    assert exact <= AGREES < rounded <= BF16_AGREES


def test_ncnn_rejects_other_batches_and_types() -> None:
    if (reason := NCNN.available()) is not None:
        pytest.skip(reason)
    with pytest.raises(EngineError, match="batch of 1"):
        NCNN.compile(residual(size=9), EngineOptions(shapes={"x": (2, 3, 9, 9)}))


def test_missing_package_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", lambda _: None)
    for name in (*CROWD, "onnxruntime"):
        engine = ENGINES.get(name)
        with pytest.raises(EngineError) as problem:
            engine.compile(residual(), EngineOptions())
        assert problem.value.code == "engine-missing"
        assert "pip install" in problem.value.message and name in problem.value.message
        assert engine.version() == ""


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "cifar10_mlp_resnet8",
        "cifar10_resnet20",
        "cifar10_vit_pgd_2_3_16",
        "coco_yolofastestv2",
        "vww_mobilenetv1_0.25",
    ],
)
def test_real_models_agree(engine: Engine, zoo: Path, name: str) -> None:
    model, options = load(zoo / f"{name}.onnx"), EngineOptions()
    feeds = random_feeds(static_inputs(model, {}))
    with engine.compile(model, options) as compiled:
        assert difference(compiled.run(feeds), reference(model, feeds, options)) <= AGREES


def test_stdout_is_for_data(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    model = residual()
    with engine.compile(model, EngineOptions()) as compiled:
        compiled.run(random_feeds(static_inputs(model, {})))
    assert engine.version()
    assert capfd.readouterr().out == ""


def shuffled(axis: int) -> Model:
    """Conv, an interleaving of its channels by Gather, Conv."""
    weight = np.random.default_rng(1).standard_normal((8, 8, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Gather", ["a", "order"], ["b"], axis=axis),
        helper.make_node("Conv", ["b", "w"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 4, 4]) for name in "xy"]
    constants = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.arange(8).reshape(2, 4).T.ravel(), "order"),
    ]
    return load(
        helper.make_model(
            helper.make_graph(nodes, "shuffled", values[:1], values[1:], constants),
            opset_imports=[helper.make_opsetid("", 13)],
            ir_version=8,
        )
    )


def test_channel_orders_as_the_canonical_form_writes_them(engine: Engine) -> None:
    """With axis 1 for -3, OpenVINO 2026.4 applies the inverse order; ncnn rejects both."""
    model = shuffled(-3)
    feeds = random_feeds(static_inputs(model, {}))
    if engine.name == "ncnn":
        with pytest.raises(EngineError, match="does not support a Gather of 8 positions"):
            engine.compile(model, EngineOptions())
        return
    with engine.compile(model, EngineOptions()) as compiled:
        assert difference(compiled.run(feeds), reference(model, feeds, EngineOptions())) <= AGREES


@pytest.mark.parametrize(
    ("size", "step", "end"), [(8, 2, 8), (9, 2, 2**31), (9, 3, 9), (8, 3, 1000)]
)
def test_every_nth_pixel_is_taken_by_every_engine(
    engine: Engine, size: int, step: int, end: int
) -> None:
    """Shortcuts without weights do it; pnnx has no Slice with steps and gets a pooling."""
    weight = np.random.default_rng(1).standard_normal((8, 3, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"])]
    constants = [numpy_helper.from_array(weight, "w")]
    for source, target, axis in (("a", "b", 2), ("b", "y", -1)):
        values = {"start": 0, "end": end, "axis": axis, "step": step}
        constants += [
            numpy_helper.from_array(np.array([v], np.int64), f"{target}.{k}")
            for k, v in values.items()
        ]
        nodes.append(
            helper.make_node("Slice", [source, *(f"{target}.{k}" for k in values)], [target])
        )
    left = -(-size // step)
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", [1, 3, size, size]), ("y", [1, 8, left, left]))
    ]
    graph = helper.make_graph(nodes, "strided", ends[:1], ends[1:], constants)
    model = load(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    )
    feeds = random_feeds(static_inputs(model, {}))
    with engine.compile(model, EngineOptions()) as compiled:
        assert difference(compiled.run(feeds), reference(model, feeds, EngineOptions())) <= AGREES
