"""Taylor and Fisher: order of sums, coupled copies, batches, blocked groups."""

from __future__ import annotations

from pathlib import Path

import graph_text
import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.autodiff import DRAWN, LABELS, VECTOR, Loss
from onnxprune.criteria.base import Context, Criterion
from onnxprune.criteria.gradient import (
    by_head,
    fisher,
    gradient_scores,
    head_losses,
    labeled,
    taylor,
)
from onnxprune.data.dataset import Data, open_data
from onnxprune.errors import DataError
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session
from onnxprune.ir.weights import from_array
from onnxprune.statistics.ablation import ablate
from onnxprune.statistics.gradients import copies, default_losses, mask_gradients
from onnxprune.testing.criteria import check_criterion

SINGLE = 1e-4  # float32 sums
STEP = 1e-2  # of central differences on float32 outputs: rounding 1e-7 / STEP, curvature STEP**2
DIFFERENCE = 2e-3
SAMPLES = 7


def net(activation: str = "Tanh", ending: str = "", opset: int = 17) -> Analysis:
    """Return stem -> residual block (conv a, conv b, add) -> pool -> fc.

    Conv a and fc consume the stream. Smooth, for finite differences.
    """
    r = np.random.default_rng(1)
    shapes = {"ws": (6, 3, 3, 3), "wa": (5, 6, 3, 3), "wb": (6, 5, 3, 3), "wf": (4, 6), "bf": (4,)}
    weights = [
        numpy_helper.from_array(r.standard_normal(s).astype(np.float32) * 0.4, n)
        for n, s in shapes.items()
    ]
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "ws"], ["s0"], name="stem", **same),
        helper.make_node("Tanh", ["s0"], ["s"], name="act_s"),
        helper.make_node("Conv", ["s", "wa"], ["a0"], name="conv_a", **same),
        helper.make_node(activation, ["a0"], ["a"], name="act_a"),
        helper.make_node("Conv", ["a", "wb"], ["b"], name="conv_b", **same),
        helper.make_node("Add", ["b", "s"], ["t"], name="add"),
        helper.make_node("GlobalAveragePool", ["t"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "wf", "bf"], ["y"], name="fc", transB=1),
    ]
    nodes += [helper.make_node(ending, ["y"], ["z"], name="end")] if ending else []
    head = "z" if ending else "y"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info(head, 1, ["N", 4])],
        weights,
    )
    return analyze(
        load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))
    )


@pytest.fixture
def data(tmp_path: Path) -> Data:
    np.savez(
        tmp_path / "x.npz",
        x=np.random.default_rng(2).standard_normal((SAMPLES, 3, 6, 6)).astype(np.float32),
    )
    return open_data(tmp_path / "x.npz", {"x": (["N", 3, 6, 6], "tensor(float)")})


def loss_of(
    analysis: Analysis, x: np.ndarray, group: str, channel: int, factor: float, labels: np.ndarray
) -> np.ndarray:
    """Return the (samples,) cross-entropy with every copy of a channel multiplied by a factor.

    The factor is applied to the weights of the channel's consumers.
    """
    model = analysis.model.edit()
    for member in analysis.members(group):
        if member.site.role == "consumes":
            w = model.weights[member.site.tensor].array().copy()
            index = [slice(None)] * w.ndim
            index[member.site.axis] = member.positions[member.channels == channel]
            w[tuple(index)] *= factor
            model.weights[member.site.tensor] = from_array(w)
    y = Session(model).run({"x": x})["y"].astype(np.float64)
    return np.log(np.exp(y).sum(1)) - y[np.arange(len(y)), labels]


def test_rows_are_derivatives_by_a_mask_on_all_copies(data: Data) -> None:
    """By central differences on weights: both copies of a stream channel are scaled together."""
    analysis = net()
    (feeds,) = data.batches(SAMPLES)
    labels = np.array([0, 1, 2, 3, 0, 1, 2])
    rows = mask_gradients(analysis, data, [Loss(LABELS, "y")], labels=labels, batch_size=3).rows
    assert (
        set(rows) == {g.name for g in analysis.groups}
        and max(len(analysis.members(g.name)) for g in analysis.groups) > 3
    )
    for name, gradients in rows.items():
        for channel in range(gradients.shape[1]):
            ends = [
                loss_of(analysis, feeds["x"], name, channel, 1 + sign * STEP, labels)
                for sign in (1, -1)
            ]
            np.testing.assert_allclose(
                gradients[:, channel],
                (ends[0] - ends[1]) / (2 * STEP),
                atol=DIFFERENCE * np.abs(gradients).max(),
            )


def test_squares_after_summing_copies_and_before_summing_samples(data: Data) -> None:
    analysis = net()
    rows = mask_gradients(analysis, data, seed=3, batch_size=4).rows
    context = Context(analysis, data, seed=3, batch_size=4)
    for name, scores in fisher(context).items():
        np.testing.assert_allclose(scores, (rows[name] ** 2).sum(0))
        np.testing.assert_allclose(taylor(context)[name], np.abs(rows[name]).sum(0))
        assert (scores > 0).all()


@pytest.mark.parametrize("criterion", [fisher, taylor])
def test_contract(data: Data, criterion: Criterion) -> None:
    check_criterion(criterion, Context(net(), data, batch_size=4))


def test_scores_do_not_depend_on_the_batch_size(data: Data) -> None:
    analysis = net()
    labels = np.arange(SAMPLES) % 4
    parts = [
        mask_gradients(analysis, data, [Loss(LABELS, "y")], labels=labels, batch_size=b).rows
        for b in (1, 3, SAMPLES)
    ]
    for name, rows in parts[0].items():
        assert rows.shape == (SAMPLES, analysis.group(name).size)
        for other in parts[1:]:
            np.testing.assert_allclose(other[name], rows, atol=SINGLE * np.abs(rows).max())


def test_a_model_that_mixes_samples_is_run_one_at_a_time(data: Data) -> None:
    """X minus its batch mean: gradients of a batch would mix samples."""
    analysis = net()
    model = analysis.model.edit()
    mean = helper.make_node("ReduceMean", ["s0"], ["m"], name="mean", axes=[0])
    centered = helper.make_node("Sub", ["s0", "m"], ["d"], name="center")
    double = helper.make_node("Add", ["s0", "d"], ["e"], name="double")
    nodes = list(model.proto.graph.node)
    nodes[1].input[0] = "e"
    nodes[1:1] = [mean, centered, double]
    graph = helper.make_graph(
        nodes,
        "mixing",
        list(model.proto.graph.input),
        list(model.proto.graph.output),
        [numpy_helper.from_array(w.array(), n) for n, w in model.weights.items()],
    )
    mixing = analyze(
        load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    )
    options = {"labels": np.arange(SAMPLES) % 4}
    alone = mask_gradients(mixing, data, [Loss(LABELS, "y")], batch_size=1, **options).rows
    batch = mask_gradients(mixing, data, [Loss(LABELS, "y")], batch_size=SAMPLES, **options).rows
    assert all(np.array_equal(alone[n], batch[n]) for n in alone)


def test_default_losses() -> None:
    assert default_losses(net().model) == (Loss(DRAWN, "y"),)
    assert default_losses(net(ending="Softmax").model) == (Loss(DRAWN, "z"),)
    model = net().model.edit()
    model.proto.graph.output.append(helper.make_tensor_value_info("t", 1, ["N", 6, 6, 6]))
    assert default_losses(model) == (Loss(DRAWN, "y"), Loss(VECTOR, "t"))


def of_two_heads(factor: float) -> Analysis:
    """Return the network with outputs without classes: the stream, and `factor` times the sum."""
    model = net().model.edit()
    graph = model.proto.graph
    graph.node.append(
        helper.make_node(
            "Mul",
            ["t", add_initializer(model, "factor", np.float32([factor]))],
            ["u"],
            name="large",
        )
    )
    graph.output.extend(
        [helper.make_tensor_value_info(name, 1, ["N", 6, 6, 6]) for name in ("s", "u")]
    )
    return analyze(model)


def test_heads_without_classes_are_scaled_by_their_standard_deviation(data: Data) -> None:
    """Scaling a head by 1000 changes no score; heads with classes or alone stay unscaled."""
    scores = []
    for factor in (1.0, 1000.0):
        context = Context(of_two_heads(factor), data, batch_size=SAMPLES)
        of_classes, s, u = head_losses(context)
        values = Session(context.analysis.model).run(next(data.batches(SAMPLES)))
        for loss in (s, u):
            y = values[loss.head].astype(np.float64)
            assert loss.scale == pytest.approx(
                np.square(y - y.mean(0)).sum((1, 2, 3)).mean() ** -0.5, rel=SINGLE
            )
        assert of_classes == Loss(DRAWN, "y") and s.kind == u.kind == VECTOR
        scores.append(fisher(context))
    for name, values in scores[0].items():
        np.testing.assert_allclose(scores[1][name], values, rtol=10 * SINGLE)
    once, twice = (fisher(context, [Loss(VECTOR, "s", scale=scale)]) for scale in (1.0, 2.0))
    assert all(np.allclose(twice[name], 4 * once[name], rtol=SINGLE) for name in once)
    assert head_losses(Context(net(), data)) == (Loss(DRAWN, "y"),)


def test_each_head_has_its_own_scores(data: Data) -> None:
    """A head that does not depend on a group scores it zero."""
    analysis = net()
    model = analysis.model.edit()
    model.proto.graph.output.append(helper.make_tensor_value_info("s", 1, ["N", 6, 6, 6]))
    two = analyze(model)
    heads = by_head(Context(two, data, batch_size=SAMPLES))
    assert set(heads) == {"y", "s"}
    inner = next(g.name for g in two.groups if g.name == "conv_a")
    assert heads["y"][inner].all() and not heads["s"][inner].any()


def test_labeled_needs_one_label_per_sample(data: Data) -> None:
    context = Context(net(), data, batch_size=4)
    assert set(labeled(context, np.arange(SAMPLES) % 4)) == {
        g.name for g in context.analysis.groups
    }
    with pytest.raises(DataError, match="3 labels for 7 samples"):
        labeled(context, np.zeros(3, np.int64))
    with pytest.raises(DataError, match="calibration data"):
        fisher(Context(net()))


def test_ablation_of_a_linear_head_is_the_mask_gradient(data: Data) -> None:
    """Loss v'f and f are linear in the last layer's inputs: the first order is exact."""
    analysis = net()
    model = analysis.model.edit()
    nodes = {n.name: n for n in model.proto.graph.node}
    nodes["act_a"].op_type = nodes["act_s"].op_type = "Neg"
    linear = analyze(model)
    losses, options = [Loss(VECTOR, "y")], {"seed": 5, "batch_size": SAMPLES}
    rows = mask_gradients(linear, data, losses, **options).rows["conv_a"]
    exact = ablate(linear, data, losses, ["conv_a"], **options)["conv_a"]
    np.testing.assert_allclose(exact, rows, atol=SINGLE * np.abs(rows).max())


def test_an_operand_with_two_cut_axes_is_ablated_by_both_masks(tmp_path: Path) -> None:
    model = graph_text.net(
        "float[2,3] x | float[3,4,5] w, float[4,5,2] v"
        ' | t = Einsum<equation="nc,cij->nij">(x, w); y = Einsum<equation="nij,ijo->no">(t, v)'
        " | float[2,2] y"
    )
    analysis = analyze(load(model))
    np.save(tmp_path / "x.npy", np.random.default_rng(3).standard_normal((6, 3)).astype(np.float32))
    batches = open_data(tmp_path / "x.npy", {"x": ([2, 3], "tensor(float)")})
    losses, options = [Loss(VECTOR, "y")], {"seed": 5, "batch_size": 2}
    rows = mask_gradients(analysis, batches, losses, **options).rows
    names = [g.name for g in analysis.groups]
    exact = ablate(analysis, batches, losses, names, **options)
    assert sorted(r.shape[1] for r in exact.values()) == [4, 5]
    for name in names:
        np.testing.assert_allclose(exact[name], rows[name], atol=SINGLE * np.abs(rows[name]).max())


def test_a_group_before_a_blocked_op_is_scored_by_ablation(data: Data) -> None:
    """Hardmax has no gradient: groups upstream get exact differences, the others their gradient."""
    analysis = net("Hardmax")
    gradients = mask_gradients(analysis, data, batch_size=SAMPLES)
    assert [(b.op, b.node) for b in gradients.blocked] == [("Hardmax", "act_a")]
    context = Context(analysis, data, batch_size=SAMPLES)
    scores = fisher(context)
    ablated = ablate(
        analysis, data, default_losses(analysis.model), gradients.incomplete, batch_size=SAMPLES
    )
    assert set(scores) == set(gradients.rows) | set(ablated) and ablated
    for name, rows in ablated.items():
        np.testing.assert_allclose(scores[name], (rows**2).sum(0))


def test_copies_match_the_masked_oracle(data: Data) -> None:
    """One place for each operand that the masked oracle multiplies and that can be pruned."""
    analysis = net()
    places, lost = copies(analysis)
    assert {(p.node, p.tensor) for p in places} == {("conv_a", "s"), ("conv_b", "a"), ("fc", "f")}
    assert not lost
    assert gradient_scores(Context(analysis, data), lambda rows: np.abs(rows).max(0)).keys() == {
        g.name for g in analysis.groups
    }
