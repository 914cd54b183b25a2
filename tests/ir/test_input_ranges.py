"""Ranges of integer and boolean inputs, and whether random inputs within them fit."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import net

from onnxprune.data.dataset import open_data
from onnxprune.errors import DataError
from onnxprune.ir.dictated import input_shapes
from onnxprune.ir.input_ranges import integer_ranges
from onnxprune.ir.io import Model, load
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.run.adapter import input_types
from onnxprune.run.pipeline import optimize

# model, and the range of each of its integer and boolean inputs
CASES = {
    "embedding": ("int64[n, s] ids | float[50, 4] E | y = Gather (E, ids)", {"ids": (0, 50)}),
    "through moves": (
        "int32[n, s] ids | float[50, 4] E, int64[1] k = {-1} | "
        "a = Cast <to = 7> (ids); b = Reshape (a, k); y = Gather (E, b)",
        {"ids": (0, 50)},
    ),
    "shifted": (
        "int64[n, s] ids | float[50, 4] E, int64[1] two = {2} | "
        "a = Add (ids, two); y = Gather (E, a)",
        {"ids": (0, 48)},
    ),
    "scaled": (
        "int64[n, s] ids | float[50, 4] E, int64[1] three = {3}, int64[1] one = {1} | "
        "a = Mul (ids, three); b = Sub (a, one); y = Gather (E, b)",
        {"ids": (1, 17)},
    ),
    "offsets of fields": (
        "int64[n, 3] ids | float[60, 4] E, int64[3] at = {0, 10, 30} | "
        "a = Add (ids, at); y = Gather (E, a)",
        {"ids": (0, 30)},
    ),
    "two tables": (
        "int64[n, s] ids | float[50, 4] E, float[30, 4] F | "
        "a = Gather (E, ids); b = Gather (F, ids); y = Add (a, b)",
        {"ids": (0, 30)},
    ),
    "activation": (
        "float[1, 8] x, int64[k] i | | a = Relu (x); y = Gather (a, i)",
        {"i": (0, 1)},
    ),
    "elements": (
        "float[n, 8] x, int64[n, 2] i | | y = GatherElements <axis = 1> (x, i)",
        {"i": (0, 8)},
    ),
    "one-hot": (
        "int64[n] i | int64[1] depth = {7}, float[2] v = {0, 1} | y = OneHot (i, depth, v)",
        {"i": (0, 7)},
    ),
    "lengths": (
        "float[6, n, 4] x, int32[n] lengths | float[1, 12, 4] W, float[1, 12, 3] R | "
        "y = LSTM <hidden_size = 3> (x, W, R, , lengths)",
        {"lengths": (1, 7)},
    ),
    "masks": (
        "bool[n, 4] attention_mask, bool[n, 4] key_padding_mask, bool[n, 4] flag | | "
        "a = Or (attention_mask, key_padding_mask); b = Or (a, flag); y = Cast <to = 1> (b)",
        {"attention_mask": (1, 2), "key_padding_mask": (0, 1), "flag": (0, 2)},
    ),
    "bytes": ("uint8[n, 3, 4, 4] x | | y = Cast <to = 1> (x)", {"x": (0, 256)}),
    "captured": (
        "bool[] c, int64[n] i | float[9, 4] E | y = If (c) "
        "<then_branch = t () => (float[n, 4] a) { a = Gather (E, i) }, "
        "else_branch = e () => (float[n, 4] b) { b = Gather (E, i) }>",
        {"c": (0, 2), "i": (0, 9)},
    ),
}


def model_of(text: str) -> Model:
    return load(net(text).SerializeToString())


@pytest.mark.parametrize("case", CASES)
def test_random_integers_are_within_what_the_graph_allows(case):
    text, ranges = CASES[case]
    model = model_of(text)
    feeds = example_feeds(model)
    assert integer_ranges(model, {n: a.shape for n, a in feeds.items()}) == ranges
    for seed in range(3):
        feeds = example_feeds(model, seed)
        Session(model).run(feeds)
        for name, (low, high) in ranges.items():
            assert low <= feeds[name].min() and feeds[name].max() < high
    data = open_data(None, input_types(model), samples=4, model=model)
    for feeds in data.batches(4):
        Session(model).run(feeds)


def test_the_whole_range_is_drawn():
    model = model_of(CASES["embedding"][0])
    ids = example_feeds(model, shapes={"ids": (20, 40)})["ids"]
    assert len(np.unique(ids)) == 50


def test_inputs_that_do_not_fit_ask_for_data(tmp_path):
    text = (
        "int64[2] shape, float[4, 6] x | float[6, 8] W, float[8, 3] V | "
        "a = MatMul (x, W); b = Reshape (a, shape); c = Relu (b); y = MatMul (c, V)"
    )
    with pytest.raises(DataError, match="pass --data") as caught:
        optimize(net(text).SerializeToString(), tmp_path / "out.onnx", engine=())
    assert caught.value.code == "data-synthetic" and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("float[N,F] x | float[8,32] w | y = MatMul(x, w)", ("N", 8)),
        ("float[N,F] x | float[32,8] w | y = Gemm<transB=1>(x, w)", ("N", 8)),
        ("float[N,C,H,W] x | float[16,3,3,3] w | y = Conv(x, w)", ("N", 3, "H", "W")),
        ("float[N,C,H,W] x | float[6,2,3,3] w | y = Conv<group=2>(x, w)", ("N", 4, "H", "W")),
        (
            "float[N,C,H,W] x | float[6,2,3,3] w | y = ConvTranspose<group=2>(x, w)",
            ("N", 6, "H", "W"),
        ),
        ("float[N,T,F] x | float[8] s | r = Relu(x); y = LayerNormalization(r, s)", ("N", "T", 8)),
        (
            "float[N,F,T] x | float[8,32] w | r = Transpose<perm=[0,2,1]>(x); y = MatMul(r, w)",
            ("N", 8, "T"),
        ),
        ("float[N,F] x | float[8,32] w | r = Add(x, x); y = MatMul(r, w)", ("N", 8)),
        ("float[N,F] x | float[1] w | y = Mul(x, w)", ("N", "F")),
        ("float[N,F] x, float[F,M] v | float[1] w | y = MatMul(x, v)", ("N", "F")),
    ],
)
def test_widths_that_weights_dictate(text: str, expected: tuple[object, ...]) -> None:
    assert input_shapes(canonicalize(load(net(text))))["x"] == expected


def test_widths_in_bodies_that_may_not_run_dictate_nothing() -> None:
    text = """float[N,F] x, bool c | float[8,32] w | y = If(c)
    <then_branch = t () => (float[N,32] p) { p = MatMul(x, w) },
     else_branch = e () => (float[N,F] q) { q = Relu(x) }>"""
    assert input_shapes(canonicalize(load(net(text))))["x"] == ("N", "F")


def test_default_run_finds_the_width_of_its_inputs() -> None:
    text = """float[N,F] x | float[8,32] w1, float[32,4] w2
    | a = MatMul(x, w1); b = Relu(a); y = MatMul(b, w2)"""
    result = optimize(net(text), criterion="fisher", repair="none", engine="none", round_to=1)
    assert result.report.counted_at == "x 1x8"
