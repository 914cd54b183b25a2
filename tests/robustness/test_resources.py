"""Small files that ask for much memory or time in sum: one sentence, within limits."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_text import net
from onnx import TensorProto, helper

from onnxprune.analysis.walk import analyze
from onnxprune.data import images, npy
from onnxprune.data.inputs import check_names
from onnxprune.data.labeled import open_labeled
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.ir.io import load
from onnxprune.ir.limits import MOST_ENDS
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.run.recipe import Recipe

HEAD = "float[1,3,8,8] x | float[8,3,1,1] w1, float[4,8,1,1] w2 | "
TAIL = "a = Conv(x, w1); b = Conv(a, w2); y = Add(b, r)"
EXPANSIONS = {
    "expand": "s = ReduceSum<keepdims=0>(x); n = Constant<value_ints=[90000000]>();"
    "e0 = Expand(s, n); e1 = Expand(s, n); t = Sum(e0, e1); r = ReduceMean<keepdims=0>(t);",
    "fill": "n = Constant<value_ints=[9000,9000]>(); e0 = ConstantOfShape(n); e1 = Neg(e0);"
    "t = Add(e0, e1); r = ReduceMean<keepdims=0>(t);",
    "tile": "n = Constant<value_ints=[1,1,1200,1200]>(); e = Tile(x, n);"
    "r = ReduceMean<keepdims=0>(e);",
    "doubling": "c0 = Concat<axis=1>(x, x);"
    + "".join(f"c{i + 1} = Concat<axis=1>(c{i}, c{i});" for i in range(18))
    + "r = ReduceMean<keepdims=0>(c18);",
}


@pytest.mark.parametrize("name", EXPANSIONS)
def test_expansion_out_of_proportion_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="times the .* bytes of all weights and inputs") as caught:
        canonicalize(load(net(HEAD + EXPANSIONS[name] + TAIL)))
    assert caught.value.code == "tensor-too-large"


def double(times: int) -> str:
    """Return as many concatenations of a tensor with itself."""
    steps = [f"c{i + 1} = Concat<axis=0>(c{i}, c{i});" for i in range(times)]
    return "c0 = Concat<axis=0>(x, x);" + "".join(steps) + f"e = Relu(c{times});"


# inference knows no length of these results
DYNAMIC_EXPANSIONS: dict[str, Callable[[int], str]] = {
    "tile": lambda n: f"n = Constant<value_ints=[{n},1,1,1]>(); e = Tile(x, n);",
    "tile, reshaped": lambda n: (
        f"n = Constant<value_ints=[{n},1,1,1]>(); d = Tile(x, n);"
        "m = Constant<value_ints=[-1]>(); e = Reshape(d, m);"
    ),
    "resize": lambda n: f"n = Constant<value_floats=[{n}.0,1.0,1.0,1.0]>(); e = Resize(x, , n);",
    "pad": lambda n: f"n = Constant<value_ints=[{n},0,0,0,0,0,0,0]>(); e = Pad(x, n);",
    "concat": lambda n: double(n.bit_length()),
}


@pytest.mark.parametrize("name", DYNAMIC_EXPANSIONS)
def test_expansion_of_a_dynamic_length_is_refused(name: str) -> None:
    def model(size: int) -> onnx.ModelProto:
        head = HEAD.replace("[1,3,8,8] x", "[N,3,8,8] x")
        text = DYNAMIC_EXPANSIONS[name](size) + "r = ReduceMax<keepdims=0>(e);"
        return net(head + text + TAIL)

    with pytest.raises(ModelError, match="times the .* bytes of all weights and inputs"):
        canonicalize(load(model(9_000_000)))
    assert analyze(load(model(9))).groups


@pytest.mark.parametrize("size", [8, 3000])
def test_expansion_in_proportion_is_accepted(size: int) -> None:
    text = HEAD + f"n = Constant<value_ints=[{size},{size}]>(); e = ConstantOfShape(n);"
    assert analyze(load(net(text + "r = ReduceMean<keepdims=0>(e);" + TAIL))).groups


def test_tensors_that_are_not_alive_together_do_not_add_up() -> None:
    """Each of ten tensors of 36 MB is used at once."""
    text = HEAD + "n = Constant<value_ints=[3000,3000]>(); r0 = ReduceSum<keepdims=0>(x);"
    for i in range(10):
        text += f"e{i} = Expand(r{i}, n); r{i + 1} = ReduceMean<keepdims=0>(e{i});"
    assert analyze(load(net(text + TAIL.replace("r)", "r10)")))).groups


@pytest.mark.parametrize("ends", ["inputs", "outputs"])
def test_number_of_graph_inputs_and_outputs_is_limited(ends: str) -> None:
    count = MOST_ENDS + 1
    inputs = [f"x{i}" for i in range(count if ends == "inputs" else 1)]
    outputs = [f"y{i}" for i in range(count if ends == "outputs" else 1)]
    kind = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in (*inputs, *outputs)]
    nodes = [helper.make_node("Relu", ["x0"], [name]) for name in outputs]
    graph = helper.make_graph(nodes, "g", kind[: len(inputs)], kind[len(inputs) :])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(ModelError, match=f"the limit is {MOST_ENDS}"):
        analyze(load(proto))


def test_sparse_tensors_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.ir.passes import lift_constants

    monkeypatch.setattr(lift_constants, "DENSE_BYTES", 1000)
    graph = net(HEAD + "a = Conv(x, w1); y = Conv(a, w2)")
    for i in range(8):
        values = helper.make_tensor(f"s{i}", TensorProto.FLOAT, [1], [1.0])
        indices = helper.make_tensor(f"s{i}_at", TensorProto.INT64, [1], [0])
        graph.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [100]))
        graph.graph.node.add(op_type="Neg", input=[f"s{i}"], output=[f"neg{i}"])
        graph.graph.output.append(helper.make_tensor_value_info(f"neg{i}", 1, [100]))
    model = canonicalize(load(graph))
    assert len(model.proto.graph.sparse_initializer) == 6


def test_sparse_constants_do_not_justify_what_is_made_of_them() -> None:
    """Each is used at once, but onnxruntime makes all of them before it runs."""
    graph = net(HEAD + "a = Conv(x, w1); y = Conv(a, w2)")
    for i in range(300):
        values = helper.make_tensor(f"s{i}", TensorProto.FLOAT, [1], [1.0])
        indices = helper.make_tensor(f"s{i}_at", TensorProto.INT64, [1], [0])
        value = helper.make_sparse_tensor(values, indices, [10**6])
        graph.graph.node.add().CopyFrom(
            helper.make_node("Constant", [], [f"c{i}"], sparse_value=value)
        )
        graph.graph.node.add(op_type="ReduceSum", input=[f"c{i}"], output=[f"sum{i}"])
        graph.graph.output.append(helper.make_empty_tensor_value_info(f"sum{i}"))
    with pytest.raises(ModelError, match="the activations take"):
        canonicalize(load(graph))


def test_size_of_an_image_is_checked_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(images, "MOST_PIXELS", 16)
    for size in ((4, 4), (17, 1)):
        buffer = io.BytesIO()
        pillow.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, "png")
        buffer.seek(0)
        if size == (4, 4):
            assert images.decode(buffer, 3).shape == (4, 4, 3)
        else:
            with pytest.raises(DataError, match="exceed the limit of 16"):
                images.decode(buffer, 3)


@pytest.mark.parametrize("threads", [1025, 1_000_000, -1])
@pytest.mark.parametrize("option", ["threads", "bench_threads"])
def test_number_of_threads_is_limited(threads: int, option: str) -> None:
    with pytest.raises(UsageError, match=f"{threads} is (greater than 1024|less than [01])"):
        Recipe.of({option: threads})


def test_many_inputs_are_not_all_spelled() -> None:
    inputs = ", ".join(f"float[1,4] x{i}" for i in range(12))
    total = ", ".join(f"x{i}" for i in range(12))
    graph = net(f"{inputs} | float[4,4] w | s = Sum({total}); y = MatMul(s, w)")
    text = analyze(load(graph)).counted_at.describe()
    assert "x7 1x4 and 4 more inputs" in text
    onnx.checker.check_model(graph)


@pytest.mark.parametrize("reader", ["calibration", "labels"])
def test_archive_out_of_proportion_is_refused(
    tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npy, "MODEST_BYTES", 1 << 16)
    inputs = {"images": (["N", 1, 8, 8], "tensor(float)")}
    path = tmp_path / "a.npz"

    def read() -> object:
        return open_labeled(path, inputs) if reader == "labels" else npy.stored_arrays(path)

    values = {"images": np.zeros((2000, 1, 8, 8), np.float32), "labels": np.zeros(2000, np.int64)}
    np.savez_compressed(path, **values)
    with pytest.raises(DataError, match="inflates to .*, over 100 times") as caught:
        read()
    assert caught.value.code == "data-too-large"
    np.savez(path, **values)
    assert read()
    np.savez_compressed(path, images=values["images"][:20], labels=values["labels"][:20])
    assert read()


def test_number_of_arrays_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npy, "MOST_ARRAYS", 30)
    np.savez(tmp_path / "a.npz", **{f"x{i}": np.zeros(1) for i in range(30)})
    assert len(npy.stored_arrays(tmp_path / "a.npz")) == 30
    with pytest.raises(DataError, match="'x19' and 10 more"):
        check_names(npy.stored_arrays(tmp_path / "a.npz"), {"images": 0}, "a.npz")
    np.savez(tmp_path / "a.npz", **{f"x{i}": np.zeros(1) for i in range(31)})
    with pytest.raises(DataError, match="holds 31 arrays; the limit is 30"):
        npy.stored_arrays(tmp_path / "a.npz")
