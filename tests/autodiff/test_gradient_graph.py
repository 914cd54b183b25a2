"""The backward graph: trained models against torch autograd, losses, places and errors."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from gradient_cases import CASES
from gradient_reference import FORMULA, SINGLE, autograd, close, in_torch, run
from onnx import helper, numpy_helper

from onnxprune.autodiff import (
    DRAWN,
    LABELS,
    VECTOR,
    Loss,
    Place,
    feeds_of,
    gradient_model,
)
from onnxprune.errors import ModelError, UsageError
from onnxprune.ir.io import Model, load
from onnxprune.ir.nodes import label
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.ir.runtime import Session
from onnxprune.ir.weights import from_array

FORWARD_PASSES = 5.0
COST_RUNS = 20
LARGE_INPUT = 400_000  # elements above which a run is long enough to need few repetitions


# input shapes, cropped if the graph allows it
ZOO = {
    "cifar10_resnet20": (3, 3, 32, 32),
    "cifar10_resnet20_bn": (3, 3, 32, 32),
    "cifar10_resnet56": (2, 3, 32, 32),
    "cifar10_resnet56_bn": (2, 3, 32, 32),
    "cifar10_mlp_resnet8": (3, 3, 32, 32),
    "cifar10_vit_pgd_2_3_16": (4, 3, 32, 32),
    "vww_mobilenetv1_0.25": (2, 3, 96, 96),
    "camvid_espnet": (1, 3, 48, 64),
    "camvid_espnet_bn": (1, 3, 48, 64),
    "coco_nanodet_m": (1, 3, 320, 320),
    "coco_yolofastestv2": (1, 3, 352, 352),
    "coco_yolofastestv2_bn": (1, 3, 352, 352),
    "sr_imdn_x2": (1, 3, 16, 24),
    "imagenet_squeezenet1.1": (1, 3, 224, 224),
    "imagenet_mobilenetv2_1.0_dq": (1, 3, 224, 224),
}
# the torch module has no indices of MaxPool: these graphs run in onnxruntime only
POOLED = ("imagenet_squeezenet1.1",)


SUMMED_AXES = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (-1, -2)}


def consumers(model: Model) -> list[Place]:
    """Return the data operands of operators that sum over channels, without graph inputs."""
    given = {i.name for i in model.proto.graph.input} | set(model.weights)
    places = []
    for node in model.proto.graph.node:
        axes = SUMMED_AXES.get(node.op_type, ())
        for name, axis in zip(node.input, axes, strict=False):
            if name not in given:
                places.append(Place(name, axis))
    return list(dict.fromkeys(places))


@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO)
def test_a_trained_model_equals_autograd(zoo: Path, name: str) -> None:
    """Label-free losses on all heads: the formulas in float64, and onnxruntime in float32.

    The second can fail if a unit lies within float32 rounding of a kink, which no unit does for
    these inputs.
    """
    from onnxprune.statistics.gradients import default_losses

    shape = ZOO[name]
    model = canonicalize(load(zoo / f"{name}.onnx"))
    (entry,) = [i for i in model.proto.graph.input if i.name not in model.weights]
    feeds = {entry.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    if json.loads((zoo / "models.json").read_text())[name]["pre"].get("scale") == 1.0:
        feeds[entry.name] = feeds[entry.name] * 50 + 120
    places, losses = consumers(model), list(default_losses(model))
    gradient = gradient_model(model, places, losses, {entry.name: shape}, shape[0])
    assert not gradient.blocked
    extra = feeds_of(gradient.feeds, np.random.default_rng(1))
    expected = autograd(model, feeds, losses, extra, places)
    close(run(gradient, feeds, extra), expected, SINGLE)
    if name not in POOLED:
        torch, module = in_torch(gradient.model)
        with torch.no_grad():
            values = module(
                {n: torch.from_numpy(v).double() for n, v in {**feeds, **extra}.items()}
            )
        close({p: values[o].numpy() for p, o in gradient.outputs.items()}, expected, FORMULA)


def small(seed: int = 0, ending: str = "", opset: int = 17) -> Model:
    """Build x (N, 3, 6, 6) -> conv a, relu -> conv b, relu + a -> pool -> gemm -> logits."""
    r = np.random.default_rng(seed)
    shapes = {"wa": (4, 3, 3, 3), "wb": (4, 4, 3, 3), "wf": (5, 4), "bf": (5,)}
    weights = [
        numpy_helper.from_array(r.standard_normal(s).astype(np.float32) * 0.5, n)
        for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["ca"], name="conv_a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["ca"], ["ra"], name="relu_a"),
        helper.make_node("Conv", ["ra", "wb"], ["cb"], name="conv_b", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["cb"], ["rb"], name="relu_b"),
        helper.make_node("Add", ["rb", "ra"], ["s"], name="add"),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "wf", "bf"], ["logits"], name="fc", transB=1),
    ]
    nodes += [helper.make_node(ending, ["logits"], ["prob"], name="end")] if ending else []
    x = helper.make_tensor_value_info("x", 1, ["N", 3, 6, 6])
    y = helper.make_tensor_value_info("prob" if ending else "logits", 1, ["N", 5])
    graph = helper.make_graph(nodes, "small", [x], [y], weights)
    return canonicalize(
        load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))
    )


def inputs(count: int = 6) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(3).standard_normal((count, 3, 6, 6)).astype(np.float32)}


PLACES = [Place("ra", 1), Place("rb", 1), Place("f", 1)]


@pytest.mark.parametrize("ending", ["", "Softmax"])
@pytest.mark.parametrize("kind", [LABELS, DRAWN, VECTOR])
@pytest.mark.parametrize("opset", [11, 17])
def test_losses_equal_autograd(ending: str, kind: str, opset: int) -> None:
    """Labeled, drawn and vector losses, on logits and on probabilities."""
    model, feeds = small(ending=ending, opset=opset), inputs()
    losses = [Loss(kind, model.proto.graph.output[0].name)]
    gradient = gradient_model(model, PLACES, losses, {"x": (6, 3, 6, 6)}, 6)
    extra = feeds_of(gradient.feeds, np.random.default_rng(0), np.array([0, 4, 2, 2, 1, 3]))
    close(run(gradient, feeds, extra), autograd(model, feeds, losses, extra, PLACES), SINGLE)


def test_ignored_labels_have_no_gradient() -> None:
    model, feeds = small(), inputs()
    gradient = gradient_model(model, PLACES, [Loss(LABELS, "logits")], {"x": (6, 3, 6, 6)}, 6)
    labels = {Loss(LABELS, "logits").input: np.array([0, -1, 2, -1, 1, 3])}
    found = run(gradient, feeds, labels)
    assert all(
        not rows[[1, 3]].any() and rows[[0, 2, 4, 5]].any(1).all() for rows in found.values()
    )


def test_confident_predictions_keep_relative_precision() -> None:
    """P - 1 for p near 1 comes from the other classes: softmax minus one has no digits left."""
    model, feeds = small(), inputs()
    scaled = model.edit()
    scaled.weights["bf"] = from_array(np.array([14, 0, 0, 0, 0], np.float32))
    losses = [Loss(LABELS, "logits")]
    gradient = gradient_model(scaled, PLACES, losses, {"x": (6, 3, 6, 6)}, 6)
    labels = {losses[0].input: np.zeros(6, np.int64)}
    expected = autograd(scaled, feeds, losses, labels, PLACES)
    assert max(np.abs(e).max() for e in expected.values()) < 1e-3
    close(run(gradient, feeds, labels), expected, SINGLE)


def test_drawn_labels_follow_the_softmax() -> None:
    """Frequencies are within four standard errors of the probabilities."""
    model, x = small(), inputs(1)["x"]
    count = 4000
    logits = Session(model).run({"x": x})["logits"]
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    gradient = gradient_model(model, PLACES, [Loss(DRAWN, "logits")], {"x": (1, 3, 6, 6)}, 1)
    (feed,) = gradient.feeds.values()
    generator = np.random.default_rng(5)
    drawn = np.array([(logits + feed.draw(generator)).argmax() for _ in range(count)])
    assert (
        np.abs(np.bincount(drawn, minlength=5) / count - p) <= 4 * np.sqrt(p * (1 - p) / count)
    ).all()


def test_heads_are_summed() -> None:
    """One pass on two heads is the sum of one pass per head."""
    model, feeds = small(), inputs()
    losses = [Loss(VECTOR, "logits"), Loss(VECTOR, "s")]
    both = gradient_model(model, PLACES, losses, {"x": (6, 3, 6, 6)}, 6)
    extra = feeds_of(both.feeds, np.random.default_rng(0))
    parts = []
    for loss in losses:
        one = gradient_model(model, PLACES, [loss], {"x": (6, 3, 6, 6)}, 6)
        parts.append(run(one, feeds, {loss.input: extra[loss.input]}))
    close(run(both, feeds, extra), {p: parts[0][p] + parts[1][p] for p in PLACES}, SINGLE)


def test_rows_do_not_depend_on_other_samples() -> None:
    """A batch gives the rows that its samples give alone."""
    model, feeds = small(), inputs()
    losses = [Loss(DRAWN, "logits")]
    whole = gradient_model(model, PLACES, losses, {"x": (6, 3, 6, 6)}, 6)
    single = gradient_model(model, PLACES, losses, {"x": (1, 3, 6, 6)}, 1)
    extra = feeds_of(whole.feeds, np.random.default_rng(0))
    alone = [
        run(single, {"x": feeds["x"][i : i + 1]}, {n: v[i : i + 1] for n, v in extra.items()})
        for i in range(6)
    ]
    close(
        run(whole, feeds, extra), {p: np.concatenate([a[p] for a in alone]) for p in PLACES}, SINGLE
    )


def test_uses_of_a_tensor_sum_to_the_tensor() -> None:
    """`ra` is read by a Conv and an Add; a place that names a node means that use only."""
    model, feeds = small(), inputs()
    uses = [Place("ra", 1, "conv_b", 0), Place("ra", 1, "add", 1)]
    gradient = gradient_model(
        model, [*uses, Place("ra", 1)], [Loss(VECTOR, "logits")], {"x": (6, 3, 6, 6)}, 6
    )
    found = run(gradient, feeds, feeds_of(gradient.feeds, np.random.default_rng(0)))
    close({uses[0]: found[uses[0]] + found[uses[1]]}, {uses[0]: found[Place("ra", 1)]}, SINGLE)
    assert np.linalg.norm(found[uses[0]]) > 0.01 * np.linalg.norm(found[uses[1]]) > 0


def blocked_model() -> Model:
    """Return `small` with a Hardmax on one branch: rb -> Hardmax -> Add."""
    model = small().edit()
    nodes = {label(n): n for n in model.proto.graph.node}
    nodes["add"].input[0] = "h"
    nodes["relu_b"].op_type, nodes["relu_b"].output[0] = "Hardmax", "h"
    return model


def test_a_node_without_a_rule_is_named_and_blocks_its_places() -> None:
    gradient = gradient_model(
        blocked_model(),
        [Place("ra", 1), Place("cb", 1), Place("s", 1)],
        [Loss(VECTOR, "logits")],
        {"x": (6, 3, 6, 6)},
        6,
    )
    (blocked,) = gradient.blocked
    assert (blocked.op, blocked.node, set(blocked.places)) == (
        "Hardmax",
        "relu_b",
        {Place("ra", 1), Place("cb", 1)},
    )
    assert set(gradient.outputs) == {Place("s", 1)}


def test_an_op_of_another_domain_has_no_rule() -> None:
    """A run gives the shape of its output, so that its own gradient exists."""
    model = small(opset=17).edit()
    gemm = next(n for n in model.proto.graph.node if n.name == "fc")
    gemm.op_type, gemm.domain = "FusedGemm", "com.microsoft"
    gemm.attribute.append(helper.make_attribute("activation", "Relu"))
    model.proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    gradient = gradient_model(
        model,
        [Place("cb", 1), Place("logits", 1)],
        [Loss(VECTOR, "logits")],
        {"x": (6, 3, 6, 6)},
        6,
    )
    assert [(b.op, b.places) for b in gradient.blocked] == [("FusedGemm", (Place("cb", 1),))]
    feeds, extra = inputs(), feeds_of(gradient.feeds, np.random.default_rng(0))
    (rows,) = run(gradient, feeds, extra).values()
    (vector,) = extra.values()
    np.testing.assert_allclose(rows, Session(model).run(feeds)["logits"] * vector, rtol=1e-5)


def test_a_constant_path_has_gradient_zero() -> None:
    model = small().edit()
    next(n for n in model.proto.graph.node if n.name == "relu_b").op_type = "Sign"
    gradient = gradient_model(model, [Place("cb", 1)], [Loss(VECTOR, "s")], {"x": (6, 3, 6, 6)}, 6)
    (rows,) = run(gradient, inputs(), feeds_of(gradient.feeds, np.random.default_rng(0))).values()
    assert rows.shape == (6, 4) and not rows.any()


def test_pool_indices_are_added_only_if_needed() -> None:
    case = next(c for c in CASES if str(c) == "MaxPool-17")
    model = canonicalize(load(case.model()))
    before = gradient_model(model, [Place("x0", 1)], [Loss(VECTOR, "y0")], {"x0": (2, 4, 6, 8)}, 2)
    after = gradient_model(model, [Place("y0", 1)], [Loss(VECTOR, "y0")], {"x0": (2, 4, 6, 8)}, 2)
    outputs = [
        next(len(n.output) for n in g.model.proto.graph.node if n.op_type == "MaxPool")
        for g in (before, after)
    ]
    assert outputs == [2, 1]


def test_errors_name_head_place_input_and_labels() -> None:
    model = small()
    with pytest.raises(ModelError, match="logit'"):
        gradient_model(model, PLACES, [Loss(VECTOR, "logit")], {"x": (1, 3, 6, 6)}, 1)
    with pytest.raises(ModelError, match="input 1 of node 'conv_b'"):
        gradient_model(
            model, [Place("ra", 1, "conv_b", 1)], [Loss(VECTOR, "logits")], {"x": (1, 3, 6, 6)}, 1
        )
    with pytest.raises(UsageError, match="input 'x'"):
        gradient_model(model, PLACES, [Loss(VECTOR, "logits")], {}, 1)
    with pytest.raises(UsageError, match="nll"):
        Loss("nll", "logits")
    with pytest.raises(UsageError, match="labels of shape"):
        gradient = gradient_model(model, PLACES, [Loss(LABELS, "logits")], {"x": (1, 3, 6, 6)}, 1)
        feeds_of(gradient.feeds, np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"shape \(9,\)"):
        feeds_of(gradient.feeds, np.random.default_rng(0), np.zeros(9, np.int64))
    with pytest.raises(ModelError, match="opset"):
        gradient_model(small(opset=8), PLACES, [Loss(VECTOR, "logits")], {"x": (1, 3, 6, 6)}, 1)


def test_the_original_model_is_unchanged() -> None:
    model = small()
    before = model.proto.SerializeToString(deterministic=True), dict(model.weights)
    gradient_model(model, PLACES, [Loss(VECTOR, "logits")], {"x": (1, 3, 6, 6)}, 1)
    assert before == (model.proto.SerializeToString(deterministic=True), dict(model.weights))


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO)
def test_fisher_costs_at_most_five_forward_passes(zoo: Path, name: str) -> None:
    """All channels of all groups cost at most five forward passes; 1.8 to 4.5 were measured.

    The median of pairs, in CPU time on one thread: other work on the machine slows both alike.
    """
    from onnxprune.analysis.walk import analyze
    from onnxprune.statistics.gradients import copies, default_losses

    analysis = analyze(load(zoo / f"{name}.onnx"))
    model, (places, _) = analysis.model, copies(analysis)
    (entry,) = [i for i in model.proto.graph.input if i.name not in model.weights]
    shape = tuple(
        d.dim_value or n for d, n in zip(entry.type.tensor_type.shape.dim, ZOO[name], strict=False)
    )
    feeds = {entry.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    gradient = gradient_model(
        model, list(places), default_losses(model), {n: v.shape for n, v in feeds.items()}, shape[0]
    )
    full = {**feeds, **feeds_of(gradient.feeds, np.random.default_rng(0))}
    forward, backward = Session(model, arena=True), Session(gradient.model, arena=True)
    times = np.array(
        [
            [_seconds(forward, feeds), _seconds(backward, full)]
            for _ in range(COST_RUNS if np.prod(shape) < LARGE_INPUT else 4)
        ]
    )
    assert np.median(times[:, 1] / times[:, 0]) <= FORWARD_PASSES


def _seconds(session: Session, feeds: dict[str, np.ndarray]) -> float:
    start = time.process_time()
    session.run(feeds)
    return time.process_time() - start
