"""Models whose constants, results or graph take much memory or time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.robustness.attack_list import MODEL, attack, optimize


def _write(folder: Path, change: Callable[[ModelProto], object]) -> list[str]:
    """Write the demo model with a change."""
    model = onnx.load(MODEL)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return optimize("model.onnx")


def _append(model: ModelProto, *nodes: onnx.NodeProto) -> None:
    """Add nodes whose last result becomes an output."""
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_empty_tensor_value_info(nodes[-1].output[0]))


def _constant(model: ModelProto, name: str, values: object, dtype: type = np.int64) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


def _expansion(model: ModelProto, op: str, sizes: list[int], copies: int) -> None:
    """Add the sum of expansions of the logits, or of fills, to many values."""
    shape = _constant(model, "many", sizes)
    inputs = {"ConstantOfShape": [shape], "Expand": ["logits_sum", shape]}
    nodes = [helper.make_node("ReduceSum", ["logits"], ["logits_sum"], keepdims=0)]
    for i in range(copies):
        nodes.append(helper.make_node(op, inputs.get(op, ["logits", shape]), [f"wide{i}"]))
    wide = [f"wide{i}" for i in range(copies)]
    nodes.append(helper.make_node("Sum", wide, ["wide"]))
    _append(model, *nodes, helper.make_node("ReduceMax", ["wide"], ["most"], keepdims=0))


@attack("two fills of 40,000 x 40,000")
def fill(folder: Path) -> list[str]:
    return _write(folder, lambda m: _expansion(m, "ConstantOfShape", [40_000] * 2, 2))


@attack("100 fills of 6,000 x 6,000")
def fills(folder: Path) -> list[str]:
    return _write(folder, lambda m: _expansion(m, "ConstantOfShape", [6_000] * 2, 100))


@attack("Expand of a number to 10^9, twice")
def expand(folder: Path) -> list[str]:
    return _write(folder, lambda m: _expansion(m, "Expand", [10**9], 2))


@attack("Tile of 10 values 30,000 x 3,000 times")
def tile(folder: Path) -> list[str]:
    return _write(folder, lambda m: _expansion(m, "Tile", [30_000, 3_000], 2))


@attack("Concat with itself 30 times")
def doubling(folder: Path) -> list[str]:
    names = ["logits", *[f"twice{i}" for i in range(30)]]
    nodes = [
        helper.make_node("Concat", [a, a], [b], axis=1)
        for a, b in zip(names, names[1:], strict=False)
    ]
    return _write(folder, lambda m: _append(m, *nodes))


@attack("Range up to 10^10")
def long_range(folder: Path) -> list[str]:
    def change(model: ModelProto) -> None:
        names = [_constant(model, f"r{i}", v) for i, v in enumerate((0, 10**10, 1))]
        _append(model, helper.make_node("Range", names, ["range"]))

    return _write(folder, change)


@attack("OneHot of depth 10^9")
def one_hot(folder: Path) -> list[str]:
    def change(model: ModelProto) -> None:
        values = _constant(model, "offon", [0, 1], np.float32)
        inputs = [_constant(model, "at", [1, 2]), _constant(model, "depth", 10**9), values]
        _append(model, helper.make_node("OneHot", inputs, ["hot"]))

    return _write(folder, change)


@attack("Resize by 30,000 x 30,000")
def resize(folder: Path) -> list[str]:
    def change(model: ModelProto) -> None:
        scales = _constant(model, "scales", [1, 1, 30_000, 30_000], np.float32)
        _append(model, helper.make_node("Resize", ["images", "", scales], ["big"]))

    return _write(folder, change)


@attack("a Loop of 10^12 iterations that stacks its results")
def endless(folder: Path) -> list[str]:
    def change(model: ModelProto) -> None:
        info = helper.make_tensor_value_info
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["go"], ["on"]),
                helper.make_node("Add", ["s", "s"], ["t"]),
                helper.make_node("Identity", ["t"], ["u"]),
            ],
            "body",
            [
                info("i", TensorProto.INT64, []),
                info("go", TensorProto.BOOL, []),
                info("s", TensorProto.FLOAT, [64]),
            ],
            [
                info("on", TensorProto.BOOL, []),
                info("t", TensorProto.FLOAT, [64]),
                info("u", TensorProto.FLOAT, [64]),
            ],
        )
        trips, start = _constant(model, "n", 10**12), _constant(model, "o", np.ones(64), np.float32)
        _append(model, helper.make_node("Loop", [trips, "", start], ["e", "all"], body=body))

    return _write(folder, change)


def _sparse(model: ModelProto, count: int, size: int) -> None:
    """Add sparse constants of one value each."""
    for i in range(count):
        values = helper.make_tensor(f"s{i}", TensorProto.FLOAT, [1], [1.0])
        indices = helper.make_tensor(f"s{i}_at", TensorProto.INT64, [1], [0])
        value = helper.make_sparse_tensor(values, indices, [size])
        model.graph.node.add().CopyFrom(
            helper.make_node("Constant", [], [f"c{i}"], sparse_value=value)
        )
        _append(model, helper.make_node("ReduceSum", [f"c{i}"], [f"sum{i}"]))


@attack("eight sparse constants of 400 MB")
def sparse(folder: Path) -> list[str]:
    return _write(folder, lambda m: _sparse(m, 8, 10**8))


@attack("2,000 sparse constants of 4 MB")
def many_sparse(folder: Path) -> list[str]:
    return _write(folder, lambda m: _sparse(m, 2_000, 10**6))


def _ends(folder: Path, inputs: int, outputs: int) -> list[str]:
    names = [f"x{i}" for i in range(inputs)], [f"y{i}" for i in range(outputs)]
    infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in e] for e in names]
    nodes = [helper.make_node("Relu", ["x0"], [name]) for name in names[1]]
    model = helper.make_model(helper.make_graph(nodes, "g", *infos))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return optimize("model.onnx")


@attack("100,000 graph inputs")
def inputs(folder: Path) -> list[str]:
    return _ends(folder, 100_000, 1)


@attack("100,000 graph outputs")
def outputs(folder: Path) -> list[str]:
    return _ends(folder, 1, 100_000)


def _chain(folder: Path, count: int) -> list[str]:
    names = ["logits", *[f"link{i}" for i in range(count)]]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in zip(names, names[1:], strict=False)]
    return _write(folder, lambda m: _append(m, *nodes))


@attack("a chain of 15,000 nodes")
def chain(folder: Path) -> list[str]:
    return _chain(folder, 15_000)


@attack("a chain of 500,000 nodes")
def long_chain(folder: Path) -> list[str]:
    return _chain(folder, 500_000)


@attack("100,000 initializers that nothing reads")
def initializers(folder: Path) -> list[str]:
    def change(model: ModelProto) -> None:
        for i in range(100_000):
            model.graph.initializer.add(name=f"i{i}", data_type=1, dims=[1], raw_data=bytes(4))

    return _write(folder, change)


@attack("an attribute of 5 million integers")
def long_attribute(folder: Path) -> list[str]:
    def change(model: ModelProto) -> None:
        node = helper.make_node("Relu", ["logits"], ["end"], axes=[1])
        node.attribute[0].ints[:] = range(5_000_000)
        _append(model, node)

    return _write(folder, change)


@attack("a node with a name of 20 MB")
def long_name(folder: Path) -> list[str]:
    name = "n" * 20_000_000
    return _write(folder, lambda m: setattr(m.graph.node[0], "name", name))


@attack("external data of 100 GB in a file with holes")
def holes(folder: Path) -> list[str]:
    with (folder / "holes").open("wb") as file:
        file.truncate(10**11)

    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer.add(name="w", data_type=1, dims=[25 * 10**9])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="holes")
        _append(model, helper.make_node("ReduceMax", ["w"], ["most"]))

    return _write(folder, change)
