"""Figures of a run: at real sizes, of the written model; ratios without a target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from onnxprune.analysis.walk import analyze
from onnxprune.cli.app import app
from onnxprune.errors import ModelError, TargetError, UsageError
from onnxprune.ir.io import Model, load, save
from onnxprune.report.data import Costs
from onnxprune.report.html import page
from onnxprune.report.terminal import summary
from onnxprune.report.text import amount
from onnxprune.run.adapter import channel_multiple
from onnxprune.run.job import RunJob
from onnxprune.run.pipeline import make_plan, optimize
from onnxprune.run.planning import check_targets
from onnxprune.run.recipe import Recipe
from onnxprune.run.warnings import growth_warning
from onnxprune.surgery.cut import cut
from tests.graph_text import net

# most MACs are in the first layer at large images, and in the last one at images of one pixel
TEXT = (
    "float[n,3,h,w] x | float[16,3,3,3] a, float[16,16,3,3] b, float[64,16,1,1] c, float[64,10] d |"
    "p = Conv<pads=[1,1,1,1]>(x, a); q = Relu(p); r = Conv<strides=[2,2], pads=[1,1,1,1]>(q, b);"
    "s = Relu(r); t = Conv<strides=[4,4]>(s, c); u = Relu(t); v = GlobalAveragePool(u);"
    "z = Flatten(v); y = Gemm(z, d)"
)


def macs_at(model: Model, *shape: int) -> int:
    """Return the MACs of a model with its input's shape fixed."""
    fixed = model.edit()
    dims = fixed.proto.graph.input[0].type.tensor_type.shape.dim
    for dim, length in zip(dims, shape, strict=True):
        dim.dim_value = length
    return analyze(fixed.freeze()).cost().macs


@pytest.mark.parametrize("how", ["shape", "data", "examples"])
def test_target_holds_at_the_said_sizes(tmp_path: Path, how: str) -> None:
    model, options, shape = load(net(TEXT)), {}, (1, 3, 128, 128)
    if how == "shape":
        options, shape = {"shape": {"x": (1, 3, 40, 24)}}, (1, 3, 40, 24)
    if how == "data":
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "x.npz", x=rng.standard_normal((8, 3, 24, 32)).astype(np.float32))
        options, shape = {"data": str(tmp_path / "x.npz"), "fast": True}, (1, 3, 24, 32)
    result = optimize(model, target="macs=50%", round_to=1, engine=(), **options)
    share = macs_at(result.model, *shape) / macs_at(model, *shape)
    assert 0.44 < share <= 0.5
    report = result.report
    assert report.after.macs / report.before.macs == pytest.approx(share)
    assert report.counted_at.startswith(f"x {'x'.join(map(str, shape))}")
    words = {"shape": "", "data": "calibration data", "examples": "example lengths"}[how]
    assert words in report.counted_at
    assert f"costs at {report.counted_at}" in summary(report)
    assert report.counted_at in page(report)


def test_shape_of_minus_one_keeps_batch_dynamic() -> None:
    model = load(net(TEXT))
    result = optimize(model, target="macs=50%", shape="x:-1,3,16,24", round_to=1, engine=())
    assert result.report.counted_at == "x 1x3x16x24"
    assert result.model.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    with pytest.raises(UsageError, match="0 is less than 1"):
        Recipe(shape="x:0,3,16,24")


def test_report_counts_the_written_model() -> None:
    result = optimize(load(net(TEXT)), target="params=60%", round_to=1, engine=())
    counted = analyze(result.model).cost().as_dict()
    assert {name: result.report.after[name] for name in counted} == counted
    assert result.report.targets[0].reached == counted["params"]


def test_missed_target_is_an_error_and_rounding_is_not() -> None:
    before = Costs(1000, 1000, 1000, 1000)
    recipe = Recipe(target="params=50%")
    check_targets(recipe, before, Costs(900, 502, 900, 900), "x 1x3")
    with pytest.raises(TargetError, match="has 53.0% of the original's params at x 1x3, 50.0%"):
        check_targets(recipe, before, Costs(900, 530, 900, 900), "x 1x3")


def test_missed_target_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(net(TEXT))
    monkeypatch.setattr(RunJob, "_repair", lambda self, v, t, decision, p: (model, decision.plan))
    output = tmp_path / "out.onnx"
    with pytest.raises(TargetError, match="is missed"):
        optimize(model, output, target="macs=50%", round_to=1, engine=())
    assert not output.exists() and not (tmp_path / "out.run").exists()


def test_biases_of_the_repair_count_towards_the_target(tmp_path: Path) -> None:
    """Layers without biases get some by the repair; the plan makes room for them."""
    text = (
        "float[n,24] x | float[24,24] a, float[24,24] b, float[24,24] c |"
        "p = MatMul(x, a); q = Relu(p); r = MatMul(q, b); s = Relu(r); y = MatMul(s, c)"
    )
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((64, 24)).astype(np.float32))
    data = {"data": str(tmp_path / "x.npz"), "engine": (), "round_to": 1, "fast": True}
    for cost in ("params", "bytes"):
        result = optimize(load(net(text)), target=f"{cost}=60%", **data)
        counted = analyze(result.model).cost().as_dict()[cost]
        original = analyze(load(net(text))).cost().as_dict()[cost]
        assert counted <= 0.603 * original
        assert result.report.after[cost] == counted


def test_larger_result_is_warned_about_with_figures() -> None:
    model = load(net(TEXT))
    before, after = Costs(10, 100, 400, 1), Costs(5, 120, 480, 1)
    larger = model.edit()
    larger.weights["a copy"] = model.weights["b"]
    text = next(growth_warning(model, larger.freeze(), before, after))
    assert "1.20 times the parameters" in text and "2304 values" in text
    assert not list(growth_warning(model, model, before, before))


def test_ratio_alone_removes_its_share_of_every_group() -> None:
    result = optimize(load(net(TEXT)), ratio="0.2", engine=())
    widths = {row.name: (row.before, row.after) for row in result.report.groups}
    assert sorted(widths.values()) == [(16, 13), (16, 13), (64, 51)]
    assert result.report.targets == ()
    assert "--ratio: 20% of the channels of 3 groups asked, 19.79% removed" in summary(
        result.report
    )


def test_ratio_is_rounded_only_by_given_multiple() -> None:
    rounded = optimize(load(net(TEXT)), ratio="0.2", round_to=8, engine=())
    assert sorted(row.after for row in rounded.report.groups) == [16, 16, 48]
    one = optimize(load(net(TEXT)), ratio={"t": 0.5}, engine=())
    assert {row.name: row.after for row in one.report.groups if row.ratio} == {"t": 32}


def test_target_that_ratios_make_unreachable_names_them() -> None:
    with pytest.raises(TargetError, match=r"ratio \*=0.2[^-]*.*--ratio"):
        optimize(load(net(TEXT)), ratio="0.2", target="macs=20%", engine=())


def test_automatic_multiple_without_engine_is_that_of_onnxruntime() -> None:
    alone = channel_multiple(Recipe(round_to="auto", engine=()))
    assert alone == channel_multiple(Recipe(round_to="auto", engine="onnxruntime")) > 1


def test_custom_operator_is_planned_and_cut_without_running(tmp_path: Path) -> None:
    text = TEXT.replace("y = Gemm(z, d)", "g = Gemm(z, d); y = custom.Twice(g)")
    model = load(net(text))
    with pytest.raises(ModelError, match="onnxprune plan --criterion l2"):
        optimize(model, target="macs=60%", round_to=1, engine=())
    plan = make_plan(model, Recipe(target="macs=60%", round_to=1, criterion="l2"))
    analysis = analyze(model)
    pruned = cut(analysis, plan)
    assert analyze(pruned).cost().macs <= 0.6 * analysis.cost().macs
    assert analysis.uncounted == "1 node of custom.Twice"


def test_length_of_minus_one_is_dynamic(tmp_path: Path) -> None:
    proto = net(TEXT)
    for info in (proto.graph.input[0],):
        for axis in (0, 2, 3):
            info.type.tensor_type.shape.dim[axis].dim_value = -1
    result = optimize(load(proto), target="macs=50%", round_to=1, engine=())
    assert result.report.counted_at == "x 1x3x128x128 (example lengths)"
    save(result.model, tmp_path / "y.onnx")
    assert load(tmp_path / "y.onnx").proto.graph.input[0].type.tensor_type.shape.dim[2] == (
        onnx.TensorShapeProto.Dimension()
    )


def test_params_before_are_those_of_the_file(tmp_path: Path) -> None:
    """Copies of a weight and weights that no node uses are in the file, so they count before."""
    copied = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    model = net(
        "float[1,4,8,8] x | float[8,4,3,3] w1, float[8,8,3,3] h1, float[8,8,3,3] h2, float[8] z, "
        "float[3,8,1,1] o, float[3,8,1,1] p, float[5,7] unused | "
        "a = Conv<pads=[1,1,1,1]>(x, w1, z); b = MaxPool<kernel_shape=[2,2]>(a); "
        "c = Conv(a, h1, z); d = Conv(b, h2, z); e = Conv(c, o); f = Conv(d, p); "
        "g = GlobalAveragePool(e); h = GlobalAveragePool(f); y = Add(g, h)"
    )
    for tensor in model.graph.initializer:
        if tensor.name.startswith("h"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(copied, tensor.name))
    path, output = tmp_path / "copies.onnx", tmp_path / "pruned.onnx"
    onnx.save(model, path)
    report = optimize(path, output, engine="none", round_to=1).report
    for costs, file in ((report.before, path), (report.after, output)):
        tensors = [t for t in onnx.load(file).graph.initializer if t.dims]
        params = [np.prod(t.dims) for t in tensors if t.data_type == onnx.TensorProto.FLOAT]
        assert costs.params == sum(params)
    assert report.before.bytes == 4 * report.before.params
    # before a run too: in JSON, on the terminal, and in the tree
    shown = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert json.loads(shown.stdout)["cost"] == report.before.to_json()
    params = f"{amount(report.before.params)} params"
    assert params in CliRunner().invoke(app, ["inspect", str(path)]).stdout
    tree = CliRunner().invoke(app, ["inspect", str(path), "--tree", "--json"])
    assert json.loads(tree.stdout)["params"] == report.before.params
    assert [w for w in report.warnings if w.startswith("no node uses 1 weight")]


PACKED = (
    "float[N,6,4] x | float[4,16] w0, float[16,48] q, float[48] b, float[16,5] w3 | "
    "a = MatMul(x, w0); r = Relu(a); n = com.microsoft.Attention<num_heads=4>(r, q, b); "
    "y = MatMul(n, w3)"
)


@pytest.mark.parametrize(("repair", "warned"), [("least-squares", True), ("none", False)])
def test_weights_that_no_repair_refits_are_named(repair: str, warned: bool, tmp_path: Path) -> None:
    data = tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((60, 6, 4)).astype(np.float32))
    # the bias of the attention is an operand with one axis, of which statistics are collected
    model = net(PACKED, opset=18 if warned else 17).SerializeToString()
    options = {"engine": "none", "round_to": 1, "data": str(data), "repair": repair}
    options |= {"criterion": "activation*weight", "allocate": "knapsack"}
    warnings = optimize(model, target="params=60%", **options).report.warnings
    named = [w for w in warnings if w.startswith("the repair does not refit the weights of")]
    assert len(named) == warned
    assert all("Attention (1 node)" in text for text in named)
