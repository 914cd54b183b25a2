"""External data: the one place that resolves tensors stored in other files than the model.

A location is resolved against the model's folder, never against the current directory, and must be
a regular file in that folder. Initializers of the main graph stay in their file; all other tensors
(attributes, bodies, local functions, sparse tensors) are embedded into the graph when it is read,
so that no later step meets a reference to a file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
)

from onnxprune.errors import ModelError
from onnxprune.files import open_regular
from onnxprune.ir.nodes import label
from onnxprune.ir.weights import VALUE_FIELDS, FileWeight, declared_size
from onnxprune.ir.wire import PROTOBUF_LIMIT_BYTES

_MAX_QUOTED = 120  # characters of a file name in a message
_PLAIN = frozenset(
    getattr(AttributeProto, name) for name in "FLOAT INT STRING FLOATS INTS STRINGS".split()
)


class ExternalFiles:
    """Files with external data of one model.

    They stay open as long as the weights that refer to them, so that a file that is renamed or
    replaced meanwhile does no harm.

    Parameters
    ----------
    path
        Path of the model, None if it was not read from a file.
    """

    def __init__(self, path: Path | None) -> None:
        self.folder = None if path is None else path.resolve().parent
        self.files: dict[Path, BinaryIO] = {}

    def weight(self, tensor: TensorProto, what: str) -> FileWeight:
        """Return the values of an external tensor, which stay in the file.

        Parameters
        ----------
        what
            Description of the tensor, for messages.

        Raises
        ------
        ModelError
            The location is outside of the model's folder or not a regular file, or the values do
            not fit into it or do not match the tensor's type and shape.
        """
        expected = declared_size(tensor, what)
        if tensor.data_type == TensorProto.STRING:
            raise ModelError("external-data", f"{what} holds strings, which cannot be external")
        info = {e.key: e.value for e in tensor.external_data}
        file = self._open(info.get("location", ""), what)
        # of the open file, since the path may lead to another one by now
        available = os.fstat(file.fileno()).st_size
        try:
            # both are optional: the tensor fills the file from its start, or from the offset
            offset = int(info.get("offset") or 0)
            length = int(info.get("length") or available - offset)
        except ValueError as problem:
            raise ModelError(
                "external-data", f"{what} has an invalid external location: {problem}"
            ) from problem
        if offset < 0 or length < 0 or offset + length > available:
            raise ModelError(
                "external-data",
                f"{_quote(info['location'])} has {available} bytes; {what} refers to "
                f"{_shorten(length)} bytes at offset {_shorten(offset)}",
            )
        if length != expected:
            raise ModelError(
                "model-truncated",
                f"{what} of shape {tuple(tensor.dims)} holds {length} bytes, not {expected}",
            )
        return FileWeight(tensor.data_type, tuple(tensor.dims), file, offset, length)

    def close(self) -> None:
        """Close all files; weights that refer to them cannot be read afterwards."""
        for file in self.files.values():
            file.close()

    def _open(self, location: str, what: str) -> BinaryIO:
        if self.folder is None:
            raise ModelError(
                "external-data",
                f"{what} is stored in {_quote(location)}, but the model was not read from a file: "
                "pass its path",
            )
        try:
            # symbolic links are resolved before the check, in folders as well
            path = (self.folder / location).resolve()
            if not location or not path.is_relative_to(self.folder):
                raise ModelError(
                    "external-data-outside",
                    f"{what} points to {_quote(location)}, outside of the model's folder",
                )
            if path not in self.files:
                # no link may take the file's place between the check above and the opening
                self.files[path] = open_regular(
                    path, os.O_NOFOLLOW if hasattr(os, "O_NOFOLLOW") else 0
                )
            return self.files[path]
        except OSError as problem:
            raise ModelError(
                "external-data",
                f"cannot read {_quote(location)}, the external data of {what}: {problem.strerror}; "
                "copy this file into the model's folder",
            ) from problem
        # a NUL in the name, or links that form a loop
        except (RuntimeError, ValueError) as problem:
            raise ModelError(
                "external-data", f"{what} has an invalid external location: {problem}"
            ) from problem


def embed_tensors(proto: ModelProto, path: Path | None) -> None:
    """Copy all external values, except those of the main graph's initializers, into the model.

    Parameters
    ----------
    path
        Path of the model, None if it was not read from a file.

    Raises
    ------
    ModelError
        As for `ExternalFiles.weight`, or the values exceed the size of a protobuf message.
    """
    external = [
        (tensor, place)
        for tensor, place in _walk_other_tensors(proto)
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    if not external:
        return
    total = 0
    with contextlib.closing(ExternalFiles(path)) as files:
        for tensor, place in external:
            weight = files.weight(tensor, place.describe(tensor))
            # in sum, since all of them end up in one protobuf message
            total += weight.length
            if total > PROTOBUF_LIMIT_BYTES:
                raise ModelError(
                    "model-too-large",
                    f"external data of constants exceed {PROTOBUF_LIMIT_BYTES} bytes; "
                    "store large constants as initializers of the main graph",
                )
            values = bytes(weight.raw())
            # raw data is the one field that holds any type; the others must not contradict it
            for field in VALUE_FIELDS:
                tensor.ClearField(field)
            tensor.raw_data = values


class _Place(NamedTuple):
    """Position of a tensor, described only if a message needs it.

    Attributes
    ----------
    owner
        Node or function with the attribute, None for an initializer.
    attribute
        Name of the attribute.
    sparse
        Sparse tensor that the tensor is a part of.
    """

    owner: NodeProto | FunctionProto | None = None
    attribute: str = ""
    sparse: SparseTensorProto | None = None

    def describe(self, tensor: TensorProto) -> str:
        """Return a phrase for messages."""
        if self.owner is None:
            place = f"initializer {tensor.name!r}"
        else:
            kind = "node" if isinstance(self.owner, NodeProto) else "function"
            name = label(self.owner) if isinstance(self.owner, NodeProto) else self.owner.name
            place = f"attribute {self.attribute!r} of {kind} {name!r}"
        if self.sparse is None:
            return place
        part = "values" if tensor is self.sparse.values else "indices"
        return f"the {part} of sparse {place}"


def _walk_other_tensors(proto: ModelProto) -> Iterator[tuple[TensorProto, _Place]]:
    """Yield all tensors of a model except the main graph's initializers, with their places."""
    yield from _walk_sparse_tensors(proto.graph.sparse_initializer, _Place())
    yield from _walk_node_tensors(proto.graph.node)
    for function in proto.functions:
        yield from _attribute_tensors(function.attribute_proto, function)
        yield from _walk_node_tensors(function.node)
    for training in proto.training_info:
        for graph in (training.initialization, training.algorithm):
            yield from _walk_graph_tensors(graph)


def _walk_graph_tensors(graph: GraphProto) -> Iterator[tuple[TensorProto, _Place]]:
    for tensor in graph.initializer:
        yield tensor, _Place()
    yield from _walk_sparse_tensors(graph.sparse_initializer, _Place())
    yield from _walk_node_tensors(graph.node)


def _walk_node_tensors(nodes: Iterable[NodeProto]) -> Iterator[tuple[TensorProto, _Place]]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute, node)


def _attribute_tensors(
    attributes: Iterable[AttributeProto], owner: NodeProto | FunctionProto
) -> Iterator[tuple[TensorProto, _Place]]:
    """Yield the tensors of attributes and of the graphs in them."""
    for attribute in attributes:
        # onnx and onnxruntime read the field of the declared type only; old files may have none
        if attribute.type in _PLAIN:
            continue
        place = _Place(owner, attribute.name)
        if attribute.HasField("t"):
            yield attribute.t, place
        for tensor in attribute.tensors:
            yield tensor, place
        if attribute.HasField("sparse_tensor"):
            yield from _walk_sparse_tensors([attribute.sparse_tensor], place)
        yield from _walk_sparse_tensors(attribute.sparse_tensors, place)
        if attribute.HasField("g"):
            yield from _walk_graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _walk_graph_tensors(graph)


def _walk_sparse_tensors(
    tensors: Iterable[SparseTensorProto], place: _Place
) -> Iterator[tuple[TensorProto, _Place]]:
    for sparse in tensors:
        yield sparse.values, place._replace(sparse=sparse)
        yield sparse.indices, place._replace(sparse=sparse)


def _quote(location: str) -> str:
    # a message quotes what the file says, which may be of any length
    return repr(location[:_MAX_QUOTED])


def _shorten(number: int) -> str:
    """Return a number as text; one that no file can have is not spelled."""
    return str(number) if number.bit_length() < 64 else "over 2^63"
