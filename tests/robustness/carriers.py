"""Tensors that refer to other files: all places of a model, and locations that must be refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
OUTSIDE = "external-data-outside"
Carrier = Callable[[TensorProto], ModelProto]


def tensor(values: np.ndarray = VALUES) -> TensorProto:
    return numpy_helper.from_array(values, "w")


def model(
    nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto] | None = None
) -> ModelProto:
    """The sum of x and w; `nodes` make w."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, 4]) for n in "xy")
    graph = helper.make_graph([*nodes, helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, functions=functions or [], opset_imports=opsets, ir_version=9)


def constant(w: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["w"], value=w)


def body(w: TensorProto, *, initializer: bool, prefix: str = "") -> onnx.GraphProto:
    """A body that returns w."""
    inner = helper.make_node("Identity", ["w"], [f"{prefix}out"])
    out = helper.make_tensor_value_info(f"{prefix}out", TensorProto.FLOAT, [3, 4])
    nodes = [inner] if initializer else [constant(w), inner]
    return helper.make_graph(nodes, "body", [], [out], [w] if initializer else [])


def branch(w: TensorProto, *, initializer: bool) -> ModelProto:
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(1)))
    cast = helper.make_node("Cast", ["c"], ["t"], to=TensorProto.BOOL)
    other = body(tensor(), initializer=False, prefix="else")
    then = body(w, initializer=initializer)
    return model(
        [
            condition,
            cast,
            helper.make_node("If", ["t"], ["w"], then_branch=then, else_branch=other),
        ]
    )


def loop(w: TensorProto) -> ModelProto:
    graph = body(w, initializer=True)
    graph.input.extend(
        helper.make_tensor_value_info(n, kind, [])
        for n, kind in (("i", TensorProto.INT64), ("go", TensorProto.BOOL))
    )
    graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [3, 4]))
    graph.node.append(helper.make_node("Identity", ["go"], ["on"]))
    graph.output.insert(0, helper.make_tensor_value_info("on", TensorProto.BOOL, []))
    trips = helper.make_node("Constant", [], ["n"], value=numpy_helper.from_array(np.array(2)))
    return model([trips, helper.make_node("Loop", ["n", "", "x"], ["w"], body=graph)])


def scan(w: TensorProto) -> ModelProto:
    graph = body(w, initializer=True)
    graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [3, 4]))
    graph.input.append(helper.make_tensor_value_info("row", TensorProto.FLOAT, [4]))
    node = helper.make_node("Scan", ["x", "x"], ["w"], body=graph, num_scan_inputs=1)
    return model([node])


def function(w: TensorProto) -> ModelProto:
    opset = [helper.make_opsetid("", 17)]
    local = helper.make_function("local", "f", [], ["w"], [constant(w)], opset)
    return model([helper.make_node("f", [], ["w"], domain="local")], [local])


def function_default(w: TensorProto) -> ModelProto:
    inner = helper.make_node("Constant", [], ["w"])
    reference = AttributeProto(name="value", ref_attr_name="v", type=AttributeProto.TENSOR)
    inner.attribute.append(reference)
    opset = [helper.make_opsetid("", 17)]
    local = helper.make_function("local", "f", [], ["w"], [inner], opset)
    local.attribute_proto.append(helper.make_attribute("v", w))
    return model([helper.make_node("f", [], ["w"], domain="local")], [local])


def initializer(w: TensorProto) -> ModelProto:
    made = model([])
    made.graph.initializer.append(w)
    return made


def training(w: TensorProto) -> ModelProto:
    made = model([constant(tensor())])
    made.training_info.add().algorithm.initializer.append(w)
    return made


def custom(w: TensorProto) -> ModelProto:
    node = helper.make_node("Table", ["x"], ["w"], domain="local", entries=[w, tensor()])
    return model([node])


def sparse(w: TensorProto, indices: TensorProto) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(w, indices, [3, 4])


def sparse_initializer(values: TensorProto, indices: TensorProto) -> ModelProto:
    made = model([])
    made.graph.sparse_initializer.append(sparse(values, indices))
    return made


def sparse_constant(values: TensorProto, indices: TensorProto) -> ModelProto:
    value = sparse(values, indices)
    return model([helper.make_node("Constant", [], ["w"], sparse_value=value)])


FLAT = tensor(VALUES.ravel())
POSITIONS = tensor(np.arange(12, dtype=np.int64))
CARRIERS: dict[str, tuple[TensorProto, Carrier]] = {
    "initializer": (tensor(), initializer),
    "large initializer": (
        tensor(np.ones((3, 400), np.float32)),
        lambda w: large(w),
    ),
    "constant": (tensor(), lambda w: model([constant(w)])),
    "constant in a branch": (tensor(), lambda w: branch(w, initializer=False)),
    "initializer of a branch": (tensor(), lambda w: branch(w, initializer=True)),
    "initializer of a loop": (tensor(), loop),
    "initializer of a scan": (tensor(), scan),
    "constant in a function": (tensor(), function),
    "default of a function": (tensor(), function_default),
    "training": (tensor(), training),
    "list of tensors": (tensor(), custom),
    "fill value": (
        tensor(np.array([3], np.float32)),
        lambda w: model(
            [
                helper.make_node("Shape", ["x"], ["s"]),
                helper.make_node("ConstantOfShape", ["s"], ["w"], value=w),
            ]
        ),
    ),
    "values of a sparse initializer": (FLAT, lambda w: sparse_initializer(w, POSITIONS)),
    "indices of a sparse initializer": (POSITIONS, lambda i: sparse_initializer(FLAT, i)),
    "values of a sparse constant": (FLAT, lambda w: sparse_constant(w, POSITIONS)),
    "indices of a sparse constant": (POSITIONS, lambda i: sparse_constant(FLAT, i)),
}
# a custom op, no part of the inference graph, and a form that onnxruntime does not load
NOT_RUN = ("list of tensors", "training", "default of a function")


def large(w: TensorProto) -> ModelProto:
    """A weight that is split from the graph when it is read."""
    text = "<ir_version: 9, opset_import: ['': 17]> g (float[2,3] x) => (float[2,400] y)"
    made = onnx.parser.parse_model(text.replace("'", '"') + "{ y = MatMul(x, w) }")
    made.graph.initializer.append(w)
    return made


def external(value: TensorProto, **entries: str) -> TensorProto:
    """The tensor without values, which lie where the entries say."""
    moved = TensorProto(
        name=value.name,
        data_type=value.data_type,
        dims=value.dims,
        data_location=TensorProto.EXTERNAL,
    )
    for key, entry in entries.items():
        moved.external_data.add(key=key, value=entry)
    return moved


def place_nothing(folder: Path) -> None:
    pass


def place_file(folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(5000))


def place_link(folder: Path) -> None:
    (folder / "w.bin").symlink_to(folder.parent / "home" / "w.bin")


def place_linked_folder(folder: Path) -> None:
    (folder / "sub").symlink_to(folder.parent / "home")


def place_loop(folder: Path) -> None:
    (folder / "w.bin").symlink_to(folder / "w.bin")


def place_pipe(folder: Path) -> None:
    os.mkfifo(folder / "w.bin")


def place_folder(folder: Path) -> None:
    (folder / "w.bin").mkdir()


def place_socket(folder: Path) -> None:
    # bound by a relative name, because the length of a socket's path is limited
    before = os.getcwd()
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("w.bin")
    os.chdir(before)


TRICKS: dict[str, tuple[Callable[[Path], None], dict[str, str], str]] = {
    "missing": (place_nothing, {"location": "w.bin"}, "external-data"),
    "no location": (place_file, {}, OUTSIDE),
    "empty location": (place_file, {"location": ""}, OUTSIDE),
    "above": (place_file, {"location": "../home/w.bin"}, OUTSIDE),
    "absolute": (place_file, {"location": "/etc/passwd"}, OUTSIDE),
    "device": (place_file, {"location": "/dev/zero"}, OUTSIDE),
    "link": (place_link, {"location": "w.bin"}, OUTSIDE),
    "linked folder": (place_linked_folder, {"location": "sub/w.bin"}, OUTSIDE),
    "loop of links": (place_loop, {"location": "w.bin"}, "external-data"),
    "pipe": (place_pipe, {"location": "w.bin"}, "external-data"),
    "folder": (place_folder, {"location": "w.bin"}, "external-data"),
    "the model's folder": (place_file, {"location": "."}, "external-data"),
    "socket": (place_socket, {"location": "w.bin"}, "external-data"),
    "zero byte": (place_file, {"location": "w\0.bin"}, "external-data"),
    "long name": (place_file, {"location": "w" * 5000}, "external-data"),
    "offset in words": (place_file, {"location": "w.bin", "offset": "many"}, "external-data"),
    "negative offset": (place_file, {"location": "w.bin", "offset": "-8"}, "external-data"),
    "huge offset": (place_file, {"location": "w.bin", "offset": "9" * 400}, "external-data"),
    "negative length": (place_file, {"location": "w.bin", "length": "-8"}, "external-data"),
    "length past the end": (place_file, {"location": "w.bin", "length": "99999"}, "external-data"),
    "another length": (place_file, {"location": "w.bin", "length": "2"}, "model-truncated"),
    "rest of another length": (place_file, {"location": "w.bin"}, "model-truncated"),
}
