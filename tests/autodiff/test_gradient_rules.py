"""Every gradient rule against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_case import Case
from gradient_cases import CASES
from gradient_reference import SINGLE, close, mask_derivatives, run
from onnx import helper, numpy_helper

from onnxprune.autodiff import VECTOR, Loss, Place, feeds_of, gradient_model
from onnxprune.autodiff.rules import TABLE
from onnxprune.ir.io import load
from onnxprune.ir.passes.canonicalize import canonicalize


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule_equals_finite_differences(case: Case) -> None:
    """Every data input and axis: onnxruntime in float32 against central differences in float64."""
    feeds = case.feeds()
    model = canonicalize(load(case.model()))
    places = [Place(n, axis) for n, v in feeds.items() for axis in range(1, v.ndim)]
    gradient = gradient_model(
        model,
        places,
        [Loss(VECTOR, f"y{case.head}")],
        {n: v.shape for n, v in feeds.items()},
        case.samples,
    )
    assert not gradient.blocked
    vector = feeds_of(gradient.feeds, np.random.default_rng(1))
    found = run(gradient, {n: v.astype(np.float32) for n, v in feeds.items()}, vector)
    assert set(found) == set(places)
    expected = {
        place: mask_derivatives(model, feeds, place, next(iter(vector.values())))
        for place in places
    }
    scale = max(np.abs(e).max() for e in expected.values())
    for place, rows in expected.items():
        rows = rows if case.samples > 1 else rows.sum(0, keepdims=True)
        assert np.abs(found[place] - rows).max() <= SINGLE * scale, (
            f"{place}: {found[place]} instead of {rows}"
        )


def test_every_row_of_the_table_is_tested() -> None:
    tested = {case.op for case in CASES}
    assert set(TABLE) - tested == {"Where", "CastLike"}  # the next test


def test_norm_of_zeros_has_a_finite_gradient() -> None:
    case = Case("ReduceL2", constants=(np.array([2, 3]),), opset=18)
    feeds = {n: v.astype(np.float32) for n, v in case.feeds().items()}
    feeds["x0"][:, 1] = 0  # a dead channel
    place = Place("x0", 1)
    shapes = {"x0": feeds["x0"].shape}
    model = canonicalize(load(case.model()))
    gradient = gradient_model(model, [place], [Loss(VECTOR, "y0")], shapes, case.samples)
    vector = feeds_of(gradient.feeds, np.random.default_rng(1))
    found = run(gradient, feeds, vector)[place]
    assert (found[:, 1] == 0).all() and (found[:, 0] != 0).all()


def test_where_and_cast_like() -> None:
    """v'Where(c, x, x y) by x is v for true c, else v y; by y it is v x for false c."""
    r = np.random.default_rng(0)
    condition = r.random((2, 3, 4)) > 0.5
    nodes = [
        helper.make_node("CastLike", ["x", "y"], ["like"], name="like"),
        helper.make_node("Mul", ["like", "y"], ["xy"], name="mul"),
        helper.make_node("Where", ["c", "like", "xy"], ["z"], name="where"),
    ]
    infos = [helper.make_tensor_value_info(n, 1, [2, 3, 4]) for n in ("x", "y", "z")]
    graph = helper.make_graph(
        nodes, "where", infos[:2], infos[2:], [numpy_helper.from_array(condition, "c")]
    )
    model = canonicalize(
        load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    )
    gradient = gradient_model(
        model,
        [Place("x", 1), Place("y", 2)],
        [Loss(VECTOR, "z")],
        {"x": (2, 3, 4), "y": (2, 3, 4)},
        2,
    )
    feeds = {n: r.standard_normal((2, 3, 4)).astype(np.float32) for n in ("x", "y")}
    extra = feeds_of(gradient.feeds, r)
    (v,) = extra.values()
    by_x, by_y = (
        feeds["x"] * np.where(condition, v, v * feeds["y"]),
        feeds["y"] * np.where(condition, 0, v * feeds["x"]),
    )
    assert not gradient.blocked
    close(
        run(gradient, feeds, extra),
        {Place("x", 1): by_x.sum(2), Place("y", 2): by_y.sum(1)},
        SINGLE,
    )
