"""Changes to the structure of a model, in place; `MUTATORS` lists them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from onnxprune.ir.nodes import nested
from tests.robustness.draws import pick, size

NAMES = (
    "",
    " ",
    "x",
    "y",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "\x00",
    "a\nb",
    "é" * 300,
    "n" * 100_000,
    "%s{0}",
    "\u202e",
)

LOCATIONS = (
    "../w",
    "/etc/passwd",
    "",
    ".",
    "w\x00",
    "w",
    "missing",
    "a" * 5000,
    "./../x/w",
    "\\w",
    "file:///etc/passwd",
)

ODD_TYPES = (0, 1, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 21, 22, 23, 99, -1)

OPS = """
    Add Concat Conv ConvTranspose Gemm MatMul Reshape Transpose Split Slice Gather Squeeze Unsqueeze
    Expand Tile Pad Resize LSTM GRU Einsum TopK Loop If Scan Softmax ReduceMean BatchNormalization
    GroupNormalization LayerNormalization DepthToSpace QuantizeLinear DequantizeLinear
    ConstantOfShape Range Shape Constant Attention Where NonZero OneHot ScatterND GatherND CumSum
    Identity Cast Upsample AveragePool MaxPool SequenceConstruct Optional StringNormalizer
""".split()
ATTRIBUTES = "axis axes perm group to body then_branch value blocksize num_outputs".split()

Mutator = Callable[[np.random.Generator, ModelProto], None]

MUTATORS: dict[str, Mutator] = {}


def mutator(change: Mutator) -> Mutator:
    """Register a function in MUTATORS under its name, with spaces for underscores."""
    MUTATORS[change.__name__.replace("_", " ")] = change
    return change


def _graph(rng: np.random.Generator, model: ModelProto) -> GraphProto:
    if rng.random() < 0.3 and _shallow(model):
        graph: GraphProto = pick(rng, list(nested(model.graph)))
        return graph
    return model.graph


def _shallow(model: ModelProto) -> bool:
    try:
        return len(list(nested(model.graph))) < 30
    except RecursionError:
        return False


def _node(rng: np.random.Generator, model: ModelProto) -> NodeProto:
    graph = _graph(rng, model)
    if not graph.node:
        return graph.node.add(op_type="Relu", input=["x"], output=["made"])
    node: NodeProto = pick(rng, graph.node)
    return node


def _names(model: ModelProto) -> list[str]:
    graph = model.graph
    return (
        [i.name for i in (*graph.input, *graph.initializer)]
        + [o for n in graph.node for o in n.output]
        + ["nowhere"]
    )


def _tensor(rng: np.random.Generator, model: ModelProto) -> TensorProto:
    if not model.graph.initializer:
        model.graph.initializer.append(
            numpy_helper.from_array(np.zeros((2, 3), np.float32), "spare")
        )
    tensor: TensorProto = pick(rng, model.graph.initializer)
    return tensor


def _infos(model: ModelProto) -> list[Any]:
    graph = model.graph
    return [*graph.input, *graph.output, *graph.value_info] or [graph.input.add(name="x")]


@mutator
def dangling_name(rng: np.random.Generator, model: ModelProto) -> None:
    node = _node(rng, model)
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = "nowhere"


@mutator
def other_input(rng: np.random.Generator, model: ModelProto) -> None:
    node = _node(rng, model)
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = pick(rng, _names(model))


@mutator
def more_operands(rng: np.random.Generator, model: ModelProto) -> None:
    node = _node(rng, model)
    for _ in range(int(pick(rng, (1, 2, 50)))):
        node.input.append(pick(rng, [*_names(model), ""]))
        node.output.append(f"extra{rng.integers(1 << 30)}")


@mutator
def fewer_operands(rng: np.random.Generator, model: ModelProto) -> None:
    node = _node(rng, model)
    names = pick(rng, (node.input, node.output))
    del names[int(rng.integers(len(names) + 1)) :]


@mutator
def cycle(rng: np.random.Generator, model: ModelProto) -> None:
    node = _node(rng, model)
    if node.input and model.graph.node and model.graph.node[-1].output:
        node.input[0] = pick(rng, [model.graph.node[-1].output[0], *node.output])


@mutator
def order(rng: np.random.Generator, model: ModelProto) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


@mutator
def duplicate_name(rng: np.random.Generator, model: ModelProto) -> None:
    node = _node(rng, model)
    if node.output:
        node.output[0] = pick(rng, _names(model))


@mutator
def duplicate_initializer(rng: np.random.Generator, model: ModelProto) -> None:
    model.graph.initializer.append(_tensor(rng, model))


@mutator
def duplicate_node(rng: np.random.Generator, model: ModelProto) -> None:
    model.graph.node.append(_node(rng, model))


@mutator
def drop_node(rng: np.random.Generator, model: ModelProto) -> None:
    graph = _graph(rng, model)
    if graph.node:
        del graph.node[int(rng.integers(len(graph.node)))]


@mutator
def other_operator(rng: np.random.Generator, model: ModelProto) -> None:
    _node(rng, model).op_type = pick(rng, [*OPS, "Nonsense", ""])


@mutator
def other_domain(rng: np.random.Generator, model: ModelProto) -> None:
    _node(rng, model).domain = pick(rng, ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "nowhere"))


@mutator
def odd_name(rng: np.random.Generator, model: ModelProto) -> None:
    old, new = pick(rng, _names(model)), pick(rng, NAMES)
    for item in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        item.name = new if item.name == old else item.name
    for node in model.graph.node:
        node.input[:] = [new if n == old else n for n in node.input]
        node.output[:] = [new if n == old else n for n in node.output]
    _node(rng, model).name = pick(rng, NAMES)


@mutator
def empty_graph(rng: np.random.Generator, model: ModelProto) -> None:
    for part in pick(
        rng,
        (
            ["node"],
            ["output"],
            ["input"],
            ["initializer"],
            ["node", "output"],
            ["node", "initializer", "input", "output"],
        ),
    ):
        model.graph.ClearField(part)


@mutator
def missing_shape(rng: np.random.Generator, model: ModelProto) -> None:
    info = pick(rng, _infos(model))
    if rng.random() < 0.3:
        info.ClearField("type")
    elif rng.random() < 0.3:
        info.type.sequence_type.elem_type.tensor_type.elem_type = 1
    else:
        info.type.tensor_type.ClearField("shape")
    model.graph.ClearField("value_info")


@mutator
def odd_dimension(rng: np.random.Generator, model: ModelProto) -> None:
    dims = pick(rng, _infos(model)).type.tensor_type.shape.dim
    choice = rng.random()
    if choice < 0.6 and dims:
        pick(rng, dims).dim_value = size(rng)
    elif choice < 0.8 and dims:
        pick(rng, dims).dim_param = pick(rng, NAMES)
    else:
        for _ in range(int(pick(rng, (1, 3, 70)))):
            dims.add(dim_value=size(rng) if rng.random() < 0.5 else 1)


@mutator
def other_type(rng: np.random.Generator, model: ModelProto) -> None:
    pick(rng, _infos(model)).type.tensor_type.elem_type = int(pick(rng, ODD_TYPES))


@mutator
def wrong_rank(rng: np.random.Generator, model: ModelProto) -> None:
    tensor = _tensor(rng, model)
    dims = list(tensor.dims)
    tensor.dims[:] = pick(
        rng, ([int(np.prod(dims))], [*dims, 1], [1, 1, *dims], dims[::-1], dims[1:], [])
    )


@mutator
def wrong_size(rng: np.random.Generator, model: ModelProto) -> None:
    tensor = _tensor(rng, model)
    if tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = size(rng)


@mutator
def empty_weight(rng: np.random.Generator, model: ModelProto) -> None:
    tensor = _tensor(rng, model)
    dims = list(tensor.dims) or [1]
    dims[int(rng.integers(len(dims)))] = 0
    tensor.CopyFrom(
        TensorProto(name=tensor.name, data_type=tensor.data_type, dims=dims, raw_data=b"")
    )


@mutator
def weight_type(rng: np.random.Generator, model: ModelProto) -> None:
    tensor = _tensor(rng, model)
    if rng.random() < 0.3:
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.STRING, [2], [b"a", b"\xff"]))
    else:
        tensor.data_type = int(pick(rng, ODD_TYPES))


@mutator
def odd_values(rng: np.random.Generator, model: ModelProto) -> None:
    tensor = _tensor(rng, model)
    kind = tensor.data_type
    count = int(np.prod(tensor.dims)) if tensor.dims else 1
    if kind == TensorProto.INT64 and count < 1000:
        tensor.CopyFrom(
            numpy_helper.from_array(
                np.array([size(rng) for _ in range(count)], np.int64).reshape(tensor.dims),
                tensor.name,
            )
        )
    elif kind == TensorProto.FLOAT and 0 <= count < 1 << 20:
        value = pick(rng, (np.nan, np.inf, -np.inf, 3e38, 0, 1e-42))
        tensor.CopyFrom(
            numpy_helper.from_array(np.full(tuple(tensor.dims), value, np.float32), tensor.name)
        )


@mutator
def external_location(rng: np.random.Generator, model: ModelProto) -> None:
    tensor = _tensor(rng, model)
    tensor.ClearField("raw_data")
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", pick(rng, LOCATIONS)),
        ("offset", str(size(rng))),
        ("length", pick(rng, (str(size(rng)), "", "x", "9" * 5000))),
    ):
        if rng.random() < 0.9:
            tensor.external_data.add(key=key, value=value)


@mutator
def sparse_initializer(rng: np.random.Generator, model: ModelProto) -> None:
    tensor = _tensor(rng, model)
    sparse = model.graph.sparse_initializer.add(dims=[size(rng), size(rng)])
    sparse.values.CopyFrom(
        numpy_helper.from_array(
            np.ones(2, np.float32), tensor.name if rng.random() < 0.5 else "thin"
        )
    )
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, size(rng)], np.int64), "i"))


@mutator
def odd_attribute(rng: np.random.Generator, model: ModelProto) -> None:
    node = _node(rng, model)
    if not node.attribute:
        node.attribute.append(
            helper.make_attribute(
                pick(rng, ATTRIBUTES),
                1,
            )
        )
    attribute = pick(rng, node.attribute)
    choice = rng.random()
    if choice < 0.3 and attribute.type == AttributeProto.INT:
        attribute.i = size(rng)
    elif choice < 0.5 and attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = size(rng)
    elif choice < 0.6 and attribute.ints:
        attribute.ints.append(size(rng))
    elif choice < 0.7:
        attribute.type = int(pick(rng, (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)))
    elif choice < 0.8:
        node.attribute.remove(attribute)
    elif choice < 0.9:
        value = pick(
            rng,
            (
                1.5,
                -1,
                "text",
                b"\xff\xfe",
                [1, 2],
                [0.5],
                ["a"],
                numpy_helper.from_array(np.zeros((0, 2))),
            ),
        )
        attribute.CopyFrom(helper.make_attribute(attribute.name, value))
    else:
        node.attribute.append(attribute)
    if attribute.ref_attr_name == "" and rng.random() < 0.05:
        attribute.ref_attr_name = "outside"


@mutator
def versions(rng: np.random.Generator, model: ModelProto) -> None:
    choice = rng.random()
    if choice < 0.3 and model.opset_import:
        model.opset_import[0].version = int(pick(rng, (-1, 0, 1, 6, 7, 9, 13, 25, 999, 2**62)))
    elif choice < 0.5:
        model.opset_import.append(
            helper.make_opsetid(
                pick(rng, ("", "ai.onnx", "com.microsoft")), int(pick(rng, (1, 7, 12)))
            )
        )
    elif choice < 0.6:
        model.ClearField("opset_import")
    else:
        model.ir_version = int(pick(rng, (0, 1, 3, 4, 13, 14, 9999, 2**62, -1)))
