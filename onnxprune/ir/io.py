"""Reading and writing of ONNX files.

A file is edited as the message it is, not converted to another representation: whatever is not
touched is preserved (metadata, doc strings, custom domains, IR version, opset, quantization
annotations).
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from onnx import ModelProto, TensorProto

from onnxprune.errors import ModelError, OutputError
from onnxprune.files import DATA, HASH_DIGITS, Staging, open_regular, sha256, staging
from onnxprune.ir import foreign, wire
from onnxprune.ir.external import ExternalFiles, embed_tensors
from onnxprune.ir.file_kinds import check_place, explain_kind
from onnxprune.ir.model import EditableModel, Model, ModelView
from onnxprune.ir.nodes import nested
from onnxprune.ir.weights import (
    VALUE_FIELDS,
    BufferWeight,
    Weight,
    declared_size,
    from_proto,
    size_bytes,
)
from onnxprune.ir.wire import PROTOBUF_LIMIT_BYTES
from onnxprune.named import describe

__all__ = ["EditableModel", "Model", "ModelView", "digest", "load", "save", "serialize", "to_bytes"]

INLINE_BYTES = 1024  # initializers up to this size are parsed with the graph
# what follows the name of the graph; versions before 0.2 gave no hash, or a shorter one
_OWN_DATA = re.compile(rf"(\.[0-9a-f]{{8}}|\.[0-9a-f]{{{HASH_DIGITS}}})?{re.escape(DATA)}")
EXTERNAL_ALIGN_BYTES = 4096  # page size, so that onnxruntime can map external data


# what `load` takes
Source = (
    str
    | os.PathLike[str]
    | bytes
    | ModelProto
    | Model
    | EditableModel
    | foreign.SurgeonGraph
    | foreign.IrModel
)


def load(source: Source) -> Model:
    """Read a model; large weights stay in the file until they are used.

    Parameters
    ----------
    source
        Path of an ONNX file, its bytes, a ModelProto, a graph of onnx-graphsurgeon, or a model of
        onnx_ir. A Model is returned unchanged, an EditableModel as a frozen copy.

    Raises
    ------
    ModelError
        The file does not exist, is not ONNX or truncated, or its external data are missing or
        outside of the model's folder.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, EditableModel):
        return source.edit().freeze()
    if isinstance(source, bytes | ModelProto):
        data = source if isinstance(source, bytes) else _write(source)
        return _parse(memoryview(data), None, "the given bytes")
    library = foreign.library_of(source)
    if library == "onnx_graphsurgeon":
        return load(foreign.export_graph(source))
    if library == "onnx_ir":
        proto, folder = foreign.export_ir(source)
        place = Path(folder, "model.onnx") if folder else None
        parsed = _parse(memoryview(proto.SerializeToString()), place, "the given model")
        return Model(parsed.proto, parsed.weights)
    if not isinstance(source, str | os.PathLike):
        raise ModelError(
            "model-kind",
            f"{describe(source)} is not a model: pass a path, bytes, a ModelProto, or a graph of "
            "onnx-graphsurgeon or onnx_ir",
        )
    path = Path(source)
    check_place(path)
    with explain_kind(path):
        try:
            buffer = _map_file(path)
        except ValueError:
            raise ModelError(
                "model-empty", f"{path} is empty: download or export it again"
            ) from None
        except OSError as problem:
            message = f"cannot read {path}: {problem.strerror}"
            raise ModelError("model-unreadable", message) from problem
        return _parse(buffer, path, str(path))


def _write(proto: ModelProto) -> bytes:
    """Return the bytes of a message; ModelError if it exceeds the format's limit."""
    try:
        return proto.SerializeToString()
    except Exception as problem:  # of a type that depends on the version of protobuf
        raise ModelError(
            "model-too-large",
            "the ModelProto cannot be written, most likely because it exceeds 2 GB: save it with "
            "external data and pass the path",
        ) from problem


def serialize(model: ModelView) -> Iterator[memoryview | bytes]:
    """Yield the file's bytes in pieces; one weight at a time is in memory."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    # fields may be in any order, so the initializers follow the rest of the graph
    tensors = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    heads = [t.SerializeToString(deterministic=True) for t in tensors]
    sizes = [size_bytes(model.weights[t.name]) if _has_raw(t) else None for t in tensors]
    # lengths come first in the format, so they are summed up before anything is written
    lengths = []
    for head, size in zip(heads, sizes, strict=True):
        length = len(head)
        if size is not None:
            length += len(wire.header(wire.RAW_DATA_FIELD, size)) + size
        lengths.append(length)
    total = len(graph)
    for length in lengths:
        total += len(wire.header(wire.INITIALIZER_FIELD, length)) + length
    yield proto.SerializeToString(deterministic=True)
    yield wire.header(wire.GRAPH_FIELD, total)
    yield graph
    for tensor, head, size, length in zip(tensors, heads, sizes, lengths, strict=True):
        yield wire.header(wire.INITIALIZER_FIELD, length) + head
        if size is not None:
            yield wire.header(wire.RAW_DATA_FIELD, size)
            yield model.weights[tensor.name].raw()


def to_bytes(model: ModelView) -> bytes:
    """Return the entire file.

    Raises
    ------
    ModelError
        The weights take more than 2 GB.
    """
    if model.size_bytes() > PROTOBUF_LIMIT_BYTES:
        raise ModelError(
            "model-too-large",
            f"{model.size_bytes()} bytes of weights exceed the limit of one ONNX message "
            f"({PROTOBUF_LIMIT_BYTES}); save with external data",
        )
    return b"".join(serialize(model))


def save(
    model: ModelView,
    path: str | os.PathLike[str],
    external_data: bool | None = None,
    *,
    overwrite: bool = False,
    files: Staging | None = None,
) -> None:
    """Write a model, weight by weight.

    Graph and external data change together: data are named after their content, so that new ones
    never replace those that the graph in place refers to, and the same model gives the same files
    whatever is in the folder.

    Parameters
    ----------
    external_data
        Store weights next to the graph in PATH.HASH.data; None does so only over 2 GB.
    overwrite
        Replace an existing file, and remove the external data that only it refers to.
    files
        Staging to write with; its commit replaces the files.

    Raises
    ------
    OutputError
        The file exists and `overwrite` is not set, or it cannot be written.
    """
    path = Path(path)
    if external_data is None:
        external_data = model.size_bytes() > PROTOBUF_LIMIT_BYTES
    if path.exists() and not overwrite:
        raise explain_existing(path)
    # not the data that the model itself was read from, which its file still refers to
    obsolete = _find_own_data(path) - _find_own_data(model.path)
    with staging() if files is None else contextlib.nullcontext(files) as files:
        # before the graph, so that it is in place when the graph refers to it
        if external_data:
            model, data = _externalize(model, path, files, overwrite)
            obsolete.discard(data.resolve())
        with files.file(path) as file:
            for piece in serialize(model):
                file.write(piece)
        files.remove(obsolete)


def digest(model: ModelView) -> str:
    """Return the sha256 of the file that `save` would write."""
    state = hashlib.sha256()
    for piece in serialize(model):
        state.update(piece)
    return state.hexdigest()


def _has_raw(tensor: TensorProto) -> bool:
    """Return whether a tensor's values are written with the graph as raw_data."""
    return tensor.data_location != TensorProto.EXTERNAL and tensor.data_type != TensorProto.STRING


class _Place(NamedTuple):
    """Initializer and the bytes that it takes in a file of external data."""

    tensor: TensorProto
    offset: int
    length: int


def _externalize(
    model: ModelView, path: Path, files: Staging, overwrite: bool
) -> tuple[ModelView, Path]:
    """Write weights over INLINE_BYTES; return a model that refers to their file, and its path."""
    unnamed = path.with_name(path.name + DATA)
    with files.file(unnamed) as file:
        copy, places = _write_weights(model, file)
    digest = files.sha256(unnamed)
    data = path.with_name(f"{path.name}.{digest[:HASH_DIGITS]}{DATA}")
    # only data that were damaged, or are none, can have the name of other content
    if data.exists() and not overwrite and not (data.is_file() and sha256(data) == digest):
        raise explain_existing(data)
    files.name_data(unnamed, data)
    _refer(places, data.name)
    return copy, data


def _write_weights(model: ModelView, file: BinaryIO) -> tuple[EditableModel, list[_Place]]:
    """Write weights over INLINE_BYTES; return a copy of the model, and their places."""
    copy = model.edit()
    places = []
    for tensor in copy.proto.graph.initializer:
        weight = copy.weights[tensor.name]
        if not _has_raw(tensor) or size_bytes(weight) <= INLINE_BYTES:
            continue
        # padding to the next page
        file.write(b"\0" * (-file.tell() % EXTERNAL_ALIGN_BYTES))
        places.append(_Place(tensor, file.tell(), size_bytes(weight)))
        file.write(weight.raw())
    return copy, places


def _refer(places: Iterable[_Place], name: str) -> None:
    """Let initializers refer to their places in a file of external data."""
    for tensor, offset, length in places:
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))


def explain_existing(path: Path) -> OutputError:
    """Return the error for a file that may not be replaced."""
    return OutputError(
        "output-exists", f"{path} exists; pass --overwrite (overwrite=True) to replace it"
    )


def _find_own_data(path: Path | None) -> set[Path]:
    """Return the external data of the graph at `path` whose names `save` has given."""
    if path is None or not path.is_file():
        return set()
    proto = ModelProto()
    try:
        proto.ParseFromString(_split_message(_map_file(path))[0])
    except Exception:  # whatever is replaced, its data are none of ours if it is no model
        return set()
    names = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return {path.with_name(name).resolve() for name in names if _is_own_data(path, name)}


def _is_own_data(path: Path, name: str) -> bool:
    """Return whether `save` gives such a name to the external data of the graph at `path`."""
    return name.startswith(path.name) and bool(_OWN_DATA.fullmatch(name[len(path.name) :]))


def _map_file(path: Path) -> memoryview:
    """Return the bytes of a regular file, read as they are used; ValueError if it is empty."""
    with open_regular(path) as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _parse(buffer: memoryview, path: Path | None, name: str) -> Model:
    """Return the model of a message, its weights apart from its graph."""
    try:
        skeleton, raw = _split_message(buffer)
        proto = ModelProto()
        proto.ParseFromString(skeleton)
    except Exception as problem:  # protobuf's DecodeError is not importable from a stable place
        raise ModelError(
            "model-not-onnx",
            f"{name} is not an ONNX model or is truncated: {problem}; download or export it again",
        ) from problem
    # ONNX has no magic number: a message of another kind may parse, but has none of these
    if not proto.graph.node and not proto.graph.output and not proto.opset_import:
        raise ModelError(
            "model-not-onnx", f"{name} is not an ONNX model: it has neither nodes nor outputs"
        )
    weights: dict[str, Weight] = {}
    files = ExternalFiles(path)
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            raise ModelError("model-invalid", f"{name} has two initializers named {tensor.name!r}")
        weights[tensor.name] = _weight(tensor, raw.get(tensor.name), files)
        # the values are in `weights`; what stays in the graph is copied with every edit
        # strings have no raw form and stay in the graph
        if tensor.data_type != TensorProto.STRING:
            for field in VALUE_FIELDS:
                tensor.ClearField(field)
    embed_tensors(proto, path)
    _open_negative_lengths(proto)
    return Model(proto, weights, path)


def _open_negative_lengths(proto: ModelProto) -> None:
    """Make lengths of -1 dynamic in all declared types, as onnxruntime reads them."""
    for graph in nested(proto.graph):
        for info in (*graph.input, *graph.output, *graph.value_info):
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_value == -1:
                    dim.ClearField("dim_value")


def _split_message(buffer: memoryview) -> tuple[bytes, dict[str, memoryview]]:
    """Return the message without large raw_data of initializers, and those by tensor name."""
    pieces: list[bytes | memoryview] = []
    raw: dict[str, memoryview] = {}
    for top in wire.fields(buffer, 0, len(buffer)):
        if top.number != wire.GRAPH_FIELD or not top.is_bytes:
            pieces.append(buffer[top.start : top.end])
            continue
        graph: list[bytes | memoryview] = []
        for item in wire.fields(buffer, top.body, top.end):
            # small ones are cheaper to parse than to keep apart
            initializer = item.number == wire.INITIALIZER_FIELD and item.is_bytes
            if initializer and item.end - item.body > INLINE_BYTES:
                graph.append(_split_tensor(buffer, item, raw))
            else:
                graph.append(buffer[item.start : item.end])
        pieces += [wire.header(wire.GRAPH_FIELD, sum(map(len, graph))), *graph]
    return b"".join(pieces), raw


def _split_tensor(buffer: memoryview, item: wire.WireField, raw: dict[str, memoryview]) -> bytes:
    """Return an initializer field without its raw_data, which is added to `raw`."""
    parts = list(wire.fields(buffer, item.body, item.end))
    values = [p for p in parts if p.number == wire.RAW_DATA_FIELD]
    rest = b"".join(buffer[p.start : p.end] for p in parts if p.number != wire.RAW_DATA_FIELD)
    if values:
        tensor = TensorProto()
        tensor.ParseFromString(rest)
        # of a repeated field the last one counts
        raw[tensor.name] = buffer[values[-1].body : values[-1].end]
    return wire.header(wire.INITIALIZER_FIELD, len(rest)) + rest


def _weight(tensor: TensorProto, data: memoryview | None, files: ExternalFiles) -> Weight:
    """Return the values of an initializer of the main graph, checked against its type and shape.

    Parameters
    ----------
    data
        Its raw_data if that was split off.
    """
    what = f"initializer {tensor.name!r}"
    if tensor.data_location == TensorProto.EXTERNAL:
        return files.weight(tensor, what)
    expected = declared_size(tensor, what)
    # of a small initializer, which was not split off
    if data is None and tensor.HasField("raw_data"):
        data = memoryview(tensor.raw_data)
    if data is None:
        try:
            return from_proto(tensor)
        except Exception as problem:  # onnx and numpy raise several types on invalid tensors
            raise ModelError("model-invalid", f"{what} cannot be read: {problem}") from problem
    shape = tuple(tensor.dims)
    if len(data) != expected:
        raise ModelError(
            "model-truncated", f"{what} of shape {shape} holds {len(data)} bytes, not {expected}"
        )
    return BufferWeight(tensor.data_type, shape, data)
