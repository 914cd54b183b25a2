"""Which axis of an input counts samples: derived from names, sizes and trial runs, or given."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from data_cases import rejects, save_npz

from onnxprune.data.dataset import open_data, samples_of, split
from onnxprune.data.inputs import read_inputs, rows_of
from onnxprune.data.labeled import open_labeled
from onnxprune.errors import UsageError
from onnxprune.ir.io import Model, load
from onnxprune.run.adapter import input_types, open_inputs
from onnxprune.run.recipe import Recipe
from onnxprune.run.splits import split_inputs

RNG = np.random.default_rng(0)
MODEL = (
    '<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({output}) {weights} {{ {nodes} }}'
)


def build(inputs: str, output: str, nodes: str, **weights: tuple[int, ...]) -> Model:
    """Return a model with random weights of these shapes."""
    declared = ", ".join(
        f"float[{','.join(map(str, shape))}] {name} = "
        f"{{{', '.join(f'{v:.3f}' for v in RNG.normal(size=int(np.prod(shape))))}}}"
        for name, shape in weights.items()
    )
    text = MODEL.format(
        inputs=inputs, output=output, nodes=nodes, weights=f"<{declared}>" if weights else ""
    )
    return load(onnx.parser.parse_model(text).SerializeToString())


DENSE = "y = MatMul (x, W)"
STATE = "a = MatMul (x, W) b = MatMul (s, V) c = Add (a, b) y = Tanh (c)"
CONV = """
    t = Transpose <perm = [1, 0]> (x) axes = Constant <value_ints = [0]> ()
    u = Unsqueeze (t, axes) y = Conv (u, W)
"""
IMAGE = """
    f = Cast <to = 1> (x) t = Transpose <perm = [2, 0, 1]> (f)
    axes = Constant <value_ints = [0]> () u = Unsqueeze (t, axes)
    y = Conv <pads = [1, 1, 1, 1]> (u, W)
"""
LSTM = "y = LSTM <hidden_size = 3> (x, W, R)"
STATEFUL = "y = LSTM <hidden_size = 3> (x, W, R, , , h, c)"
CELL = {"W": (1, 12, 4), "R": (1, 12, 3)}
MIXER = "y = MatMul (W, x)"  # over the first axis
POOL = "y = ReduceMean <axes = [0], keepdims = 1> (x)"

# inputs, output, nodes, weights, expected axes, samples per feed
CASES = {
    "batch": ("float[batch, 4] x", "float[batch, 3] y", DENSE, {"W": (4, 3)}, {"x": 0}, None),
    "one": ("float[1, 4] x", "float[1, 3] y", DENSE, {"W": (4, 3)}, {"x": 0}, 1),
    "unnamed": ("float[d, 4] x", "float[d, 3] y", DENSE, {"W": (4, 3)}, {"x": 0}, None),
    "fixed rows": ("float[6, 4] x", "float[6, 3] y", DENSE, {"W": (4, 3)}, {"x": 0}, 6),
    "fixed tokens": ("float[6, 4] x", "float[6, 4] y", MIXER, {"W": (6, 6)}, {"x": None}, 1),
    "pooled": ("float[d, 4] x", "float[1, 4] y", POOL, {}, {"x": None}, 1),
    "state": (
        "float[n, 4] x, float[1, 2] s",
        "float[n, 3] y",
        STATE,
        {"W": (4, 3), "V": (2, 3)},
        {"x": 0, "s": None},
        None,
    ),
    "time": ("float[time, 4] x", "float[1, 3, t] y", CONV, {"W": (3, 4, 5)}, {"x": None}, 1),
    "length": ("float[d, 4] x", "float[1, 3, e] y", CONV, {"W": (3, 4, 5)}, {"x": None}, 1),
    "fixed time": ("float[9, 4] x", "float[1, 3, 5] y", CONV, {"W": (3, 4, 5)}, {"x": None}, 1),
    "bytes": (
        "uint8[h, w, 3] x",
        "float[1, 2, h, w] y",
        IMAGE,
        {"W": (2, 3, 3, 3)},
        {"x": None},
        1,
    ),
    "fixed bytes": (
        "uint8[6, 5, 3] x",
        "float[1, 2, 6, 5] y",
        IMAGE,
        {"W": (2, 3, 3, 3)},
        {"x": None},
        1,
    ),
    "time first": ("float[s, d, 4] x", "float[s, 1, d, 3] y", LSTM, CELL, {"x": 1}, None),
    "fixed time first": ("float[7, 5, 4] x", "float[7, 1, 5, 3] y", LSTM, CELL, {"x": None}, 1),
    "states": (
        "float[s, d, 4] x, float[1, d, 3] h, float[1, d, 3] c",
        "float[s, 1, d, 3] y",
        STATEFUL,
        CELL,
        {"x": 1, "h": 1, "c": 1},
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_axes_are_derived(case):
    inputs, output, nodes, weights, axes, batch = CASES[case]
    model = build(inputs, output, nodes, **weights)
    known = read_inputs(input_types(model), model=model)
    assert {name: item.axis for name, item in known.items.items()} == axes
    assert known.batch == batch


def model_of(case: str) -> Model:
    inputs, output, nodes, weights, *_ = CASES[case]
    return build(inputs, output, nodes, **weights)


def test_each_state_belongs_to_its_sample(tmp_path):
    x, s = np.arange(64.0 * 4).reshape(64, 4), np.arange(64.0 * 2).reshape(64, 1, 2)
    for states in (s, s[:, 0]):
        path = save_npz(tmp_path, x=np.float32(x), s=np.float32(states))
        data = open_inputs(model_of("state"), Recipe(data=str(path)))
        feeds = list(data.batches(16))
        assert data.samples == sum(map(samples_of, feeds)) == 64
        numbers = {(float(f["x"][0, 0]) / 4, float(f["s"][0, 0]) / 2) for f in feeds}
        assert numbers == {(k, k) for k in range(64)}
        one, other = split(data, 51, 13)
        assert not {f["x"][0, 0] for f in one.batches(1)} & {f["x"][0, 0] for f in other.batches(1)}


def test_a_sequence_is_one_sample(tmp_path):
    path = save_npz(tmp_path, x=RNG.normal(size=(40, 20, 4)).astype(np.float32))
    for case in ("time", "length"):
        data = open_inputs(model_of(case), Recipe(data=str(path)))
        assert data.samples == 40
        assert {(f["x"].shape, samples_of(f)) for f in data.batches(8)} == {((20, 4), 1)}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("stored", ["model", "first", "feeds"])
def test_samples_of_time_first_models_are_stacked_on_their_axis(tmp_path, stored, compressed):
    model = model_of("time first")
    samples = np.arange(6 * 7 * 4, dtype=np.float32).reshape(6, 7, 4)
    array = {
        "model": samples.transpose(1, 0, 2),
        "first": samples,
        "feeds": samples.reshape(3, 2, 7, 4).transpose(0, 2, 1, 3),
    }[stored]
    recipe = Recipe(
        data=str(save_npz(tmp_path, compressed, x=np.ascontiguousarray(array))),
        shape={"x": (7, -1, 4)},
    )
    data = open_inputs(model, recipe)
    assert data.samples == 6
    feeds = list(data.batches(4))
    assert [f["x"].shape for f in feeds] == [(7, 4, 4), (7, 2, 4)]
    assert [samples_of(f) for f in feeds] == [4, 2]
    rows = np.concatenate([f["x"] for f in feeds], 1).transpose(1, 0, 2)
    order = list(data.chosen)
    np.testing.assert_array_equal(rows, samples[order])
    assert rows_of(feeds[0], slice(1, 3))["x"].shape == (7, 2, 4)


def test_axes_can_be_given(tmp_path):
    types = {"x": (["s", "d", 4], "tensor(float)"), "h": ([1, "d", 3], "tensor(float)")}
    given = {
        (("x", 1),): {"x": 1, "h": 1},
        (("x", 0),): {"x": 0, "h": None},
        (("x", "none"),): {"x": None, "h": None},
        (("*", "none"),): {"x": None, "h": None},
        (("x", 1), ("h", "none")): {"x": 1, "h": None},
    }
    for options, axes in given.items():
        known = read_inputs(types, batch_axes=dict(options))
        assert {n: i.axis for n, i in known.items.items()} == axes, options
    path = save_npz(tmp_path, x=np.ones((40, 4), np.float32))
    for axis, samples in (("x:0", 40), ("x:none", 1), ("none", 1), (0, 40)):
        recipe = Recipe(data=str(path), batch_axis=[axis])
        assert open_inputs(model_of("length"), recipe).samples == samples, axis
    assert Recipe(batch_axis=["x:1", "none"]).plain()["batch_axis"] == {"x": 1, "*": "none"}


def test_axes_that_do_not_exist_are_refused():
    types = {"x": (["s", 4], "tensor(float)"), "y": ([3, 5], "tensor(float)")}
    with rejects("unknown-input", "'z'", kind=UsageError):
        read_inputs(types, batch_axes={"z": 0})
    with rejects("batch-axis", "'x' has rank 2", kind=UsageError):
        read_inputs(types, batch_axes={"x": 2})
    with rejects("batch-axis", "3, 4", kind=UsageError):
        read_inputs(types, batch_axes={"x": 1, "y": 0})
    with rejects("option-value", "'middle' is not the number of an axis", kind=UsageError):
        Recipe(batch_axis="x:middle")


def test_one_value_for_all_samples_is_no_row_per_sample(tmp_path):
    types = {"x": (["time", 4], "tensor(float)"), "s": ([1, 2], "tensor(float)")}
    path = save_npz(tmp_path, x=np.ones((8, 4), np.float32), s=np.ones((8, 1, 2), np.float32))
    with rejects("data-shape", "'x'", "--batch-axis x:0"):
        open_data(path, types)


SHAPES_OF_A_GRAPH = {"nodes": (6, 5, 4), "edges": (6, 3)}


def test_rows_of_whole_inputs_are_named(tmp_path):
    """Nodes and edges of a graph: the rows of one input are no samples."""
    types = {"nodes": (["n", 4], "tensor(float)"), "edges": (["e"], "tensor(float)")}
    path = save_npz(tmp_path, **{n: np.ones(s) for n, s in SHAPES_OF_A_GRAPH.items()})
    with rejects("data-shape", "'nodes' 30, 'edges' 6", "if these are 6 whole inputs, pass"):
        open_data(path, types)
    inputs = read_inputs(types, batch_axes={"*": "none"})
    pieces = {n: inputs.pieces(n, s, np.dtype("f4"), "") for n, s in SHAPES_OF_A_GRAPH.items()}
    assert inputs.common_count(pieces, "") == 6


def test_labeled_samples_follow_the_batch_axis(tmp_path):
    model = model_of("time first")
    x = np.arange(7 * 6 * 4, dtype=np.float32).reshape(7, 6, 4)
    path = tmp_path / "labeled.npz"
    np.savez(path, x=x, labels=np.arange(6))
    data = open_labeled(path, input_types(model), shapes={"x": (7, -1, 4)}, model=model)
    (batch,) = data.labeled_batches(8)
    np.testing.assert_array_equal(batch.feeds["x"], x)
    assert batch.count == 6 and batch.labels["labels"].tolist() == list(range(6))


def test_held_out_inputs_are_no_copies_of_calibration_inputs(tmp_path):
    model, recipe = model_of("one"), Recipe(samples=40, data="x.npz")
    distinct = RNG.normal(size=(40, 4)).astype(np.float32)
    for compressed in (False, True):
        for x, described in ((distinct, ""), (distinct[np.arange(40) % 25], " distinct")):
            path = save_npz(tmp_path, compressed, x=x)
            splits = split_inputs(open_inputs(model, recipe, path=str(path)), None, recipe)
            assert splits.report is not None
            calibration, report = (
                {f["x"].tobytes() for f in part.batches(1)}
                for part in (splits.calibration, splits.report)
            )
            assert not calibration & report
            lines = splits.describe()
            assert lines["calibration"].endswith(f"{len(calibration)} distinct") == bool(described)
    path = save_npz(tmp_path, x=np.tile(distinct[:1], (40, 1)))
    splits = split_inputs(open_inputs(model, recipe, path=str(path)), None, recipe)
    assert splits.report is None and "1 distinct" in splits.describe()["calibration"]
