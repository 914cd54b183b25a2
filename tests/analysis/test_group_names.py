"""Names of groups: unique, the same under every option, and readable by version 0.1's plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxprune.allocators.steps import asked_ratios
from onnxprune.analysis.group_names import former_names, number_equal
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.search.subnet import to_subnet
from onnxprune.surgery.cut import cut

SHAPES = {
    **{"we": (6, 8), "gamma": (8,), "beta": (8,), "wqkv": (8, 24), "wo": (8, 8), "wg": (8, 32)},
    **{"wd": (16, 8), "wc": (8, 8, 1, 1), "wk": (8, 2, 1, 1), "wy": (4, 8, 1, 1)},
}
OPTIONS = (
    {"allow_mixing": ["LayerNormalization", "Softmax"]},
    {"freeze": ["wg"]},
    {"freeze": ["wo"]},
    {"grouped": "group"},
    {"grouped": "position"},
    {"untie": True},
)


@pytest.fixture(scope="module")
def model() -> Model:
    """Return attention of two heads from one projection, a gated MLP, a grouped convolution."""
    proto = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    names (float[1, 5, 6] x) => (float[1, 4, 5, 1] y)
    <int64[5] apart = {1, 5, 3, 2, 4}, int64[3] together = {1, 5, 8}, int64[1] end = {3},
     int64[4] image = {1, 5, 8, 1}> {
      e = MatMul (x, we)
      n = LayerNormalization (e, gamma, beta)
      qkv = MatMul (n, wqkv)
      parts = Reshape (qkv, apart)
      heads = Transpose <perm = [2, 0, 3, 1, 4]> (parts)
      q, k, v = Split <axis = 0> (heads)
      kt = Transpose <perm = [0, 1, 2, 4, 3]> (k)
      s = MatMul (q, kt)
      p = Softmax <axis = -1> (s)
      o = MatMul (p, v)
      t = Transpose <perm = [0, 1, 3, 2, 4]> (o)
      r = Reshape (t, together)
      a = MatMul (r, wo)
      m = Add (e, a)
      g = MatMul (m, wg)
      up, gate = Split <axis = 2> (g)
      h = Mul (up, gate)
      d = MatMul (h, wd)
      f = Add (m, d)
      i = Reshape (f, image)
      c0 = Transpose <perm = [0, 2, 1, 3]> (i)
      c = Conv (c0, wc)
      b = Conv <group = 4> (c, wk)
      y = Conv (b, wy)
    }""")
    random = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        values = random.standard_normal(shape, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return load(proto)


def places(analysis: Analysis, name: str) -> set[tuple[str, int, int, int]]:
    """Return tensor, axis, position and channel of everything in a group."""
    return {
        (m.site.tensor, m.site.axis, int(position), int(channel))
        for m in analysis.members(name)
        for position, channel in zip(m.positions, m.channels, strict=True)
    }


def test_names_say_which_part_of_an_axis_a_group_is(model: Model) -> None:
    names = {g.name: g.size for g in analyze(model).groups}
    # heads; dimensions of queries and keys, and of values; the gated MLP; groups, positions in them
    assert names == {
        **{"qkv/blocks": 2, "qkv/0:16/dims": 4, "qkv/16:24/dims": 4, "g/dims": 16},
        **{"c": 4, "c/positions": 2, "b/positions": 2},
    }


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_names_keep_their_meaning_under_all_options(model: Model, options: dict) -> None:
    before, after = analyze(model), analyze(model, **options)
    common = {g.name for g in before.groups} & {g.name for g in after.groups}
    assert len(common) >= 4
    for name in common:
        # of a frozen tensor, a group may lose a site, but its channels are where they were
        assert places(after, name) & places(before, name), name
        assert after.group(name).size == before.group(name).size, name


def test_plans_and_recipes_of_version_0_1_are_read(model: Model) -> None:
    analysis = analyze(model)
    former = former_names(analysis.groups, model.weights)
    assert {"qkv", "qkv#2", "qkv#3", "c#2"} <= set(former)
    old = {name: [0, 1] for name, group in former.items() if name != group.name and group.size > 2}
    plan = analysis.plan({former[name].name: kept for name, kept in old.items()})
    foreign = replace(
        plan,
        kept={name: (0, 1) for name in old},
        sizes={name: former[name].size for name in old},
    )
    assert to_bytes(cut(analysis, foreign)) == to_bytes(cut(analysis, plan))
    assert analysis.cost(foreign.kept) == analysis.cost(plan.kept)
    assert to_subnet(analysis, foreign) == to_subnet(analysis, plan)
    (name,) = [name for name, group in former.items() if group.name == "qkv/16:24/dims"]
    assert asked_ratios(analysis, {name: 0.5}) == {"qkv/16:24/dims": 0.5}
    assert asked_ratios(analysis, {"*/dims": 0.5, "c": 0.25}) == {
        **dict.fromkeys(("qkv/0:16/dims", "qkv/16:24/dims", "g/dims"), 0.5),
        "c": 0.25,
    }


def test_nodes_of_equal_names_are_told_apart_by_their_outputs(model: Model) -> None:
    editor = model.edit()
    for node in editor.proto.graph.node:
        if node.op_type == "Conv":
            node.name = "conv"
    names = [g.name for g in analyze(editor.freeze()).groups]
    assert len(set(names)) == len(names) and {"c", "c/positions", "b/positions"} <= set(names)
    assert number_equal(["a", "a#2", "a"], [[0], [0], [1]]) == ["a", "a#2#2", "a#2"]
