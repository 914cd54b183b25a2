"""Reading and writing ONNX files.

The file is edited as the message it is, not through another representation: what nothing touches stays as it was
(metadata, doc strings, custom domains, IR version, opset, quantization annotations), with nothing to carry over.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from onnx import ModelProto, TensorProto

from onnxprune.errors import ModelError, OutputError
from onnxprune.files import replacing
from onnxprune.ir import wire
from onnxprune.ir.weights import Mapped, Stored, Weight, from_proto, size_bytes

INLINE_BYTES = 1024  # initializers up to this size are parsed with the graph
PROTOBUF_LIMIT_BYTES = (
    2_000_000_000  # a message over 2 GiB cannot be parsed; some room for the graph itself
)
EXTERNAL_ALIGN_BYTES = 4096  # page size, so that onnxruntime can map external data
_LONGEST_NAME = 120


@dataclass(frozen=True)
class Model:
    """A graph and its weights, apart.

    proto: the graph; its top-level initializers carry name, type and shape but no values. Treat as read-only: `edit` gives a copy.
    weights: values of every top-level initializer by name.
    path: where it was read from, if it was.
    """

    proto: ModelProto
    weights: Mapping[str, Weight] = field(repr=False)
    path: Path | None = None

    def edit(self) -> Model:
        """A copy whose proto and weights can be changed; the values themselves are shared."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        return replace(self, proto=proto, weights=dict(self.weights))

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)

    def size_bytes(self) -> int:
        """Bytes of all initializers."""
        return sum(size_bytes(w) for w in self.weights.values())


def load(source: str | os.PathLike[str] | bytes | ModelProto | Model) -> Model:
    """Read a model; weights stay in the file until they are asked for.

    Parameters
    ----------
    source
        Path of an ONNX file, its bytes, or a ModelProto.

    Raises
    ------
    ModelError
        Not there, not ONNX, truncated, or external data missing or outside of the model's folder.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, bytes | ModelProto):
        data: bytes = source if isinstance(source, bytes) else source.SerializeToString()
        return _parse(memoryview(data), None, "the given bytes")
    path = Path(source)
    try:
        with open(path, "rb") as file:
            buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError:
        raise ModelError("model-empty", f"{path} is empty") from None
    except OSError as problem:
        raise ModelError("model-unreadable", f"cannot read {path}: {problem.strerror}") from problem
    return _parse(buffer, path, str(path))


def serialize(model: Model) -> Iterator[memoryview | bytes]:
    """The file's bytes in pieces; one weight at a time is in memory."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    tensors = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    heads = [t.SerializeToString(deterministic=True) for t in tensors]
    sizes = [size_bytes(model.weights[t.name]) if _has_raw(t) else None for t in tensors]
    bodies = [
        len(h) + (0 if n is None else len(wire.header(wire.RAW_DATA_FIELD, n)) + n)
        for h, n in zip(heads, sizes, strict=False)
    ]
    yield proto.SerializeToString(deterministic=True)
    yield wire.header(
        wire.GRAPH_FIELD,
        len(graph) + sum(len(wire.header(wire.INITIALIZER_FIELD, b)) + b for b in bodies),
    )
    yield graph
    for tensor, head, size, body in zip(tensors, heads, sizes, bodies, strict=False):
        yield wire.header(wire.INITIALIZER_FIELD, body) + head
        if size is not None:
            yield wire.header(wire.RAW_DATA_FIELD, size)
            yield model.weights[tensor.name].raw()


def to_bytes(model: Model) -> bytes:
    """The whole file; ModelError over 2 GB."""
    if model.size_bytes() > PROTOBUF_LIMIT_BYTES:
        raise ModelError(
            "model-too-large",
            f"{model.size_bytes()} bytes of weights do not fit one ONNX message; save with external data",
        )
    return b"".join(serialize(model))


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model, weight by weight.

    Parameters
    ----------
    external_data
        Put weights beside the graph in PATH.data; None = only when over 2 GB.
    overwrite
        Replace an existing file; without it that is an OutputError.
    """
    path = Path(path)
    data = path.with_name(path.name + ".data")
    if external_data is None:
        external_data = model.size_bytes() > PROTOBUF_LIMIT_BYTES
    for taken in (path, data) if external_data else (path,):
        if taken.exists() and not overwrite:
            raise OutputError(
                "output-exists", f"{taken} exists; pass --overwrite (overwrite=True) to replace it"
            )
    if external_data:
        model = _externalize(model, data)
    with replacing(path) as file:
        for piece in serialize(model):
            file.write(piece)


def digest(model: Model) -> str:
    """sha256 over the file that `save` would write."""
    state = hashlib.sha256()
    for piece in serialize(model):
        state.update(piece)
    return state.hexdigest()


def _has_raw(tensor: TensorProto) -> bool:
    return tensor.data_location != TensorProto.EXTERNAL and tensor.data_type != TensorProto.STRING


def _externalize(model: Model, data: Path) -> Model:
    """The same model whose weights over INLINE_BYTES lie in `data`."""
    model = model.edit()
    with replacing(data) as file:
        for tensor in model.proto.graph.initializer:
            weight = model.weights[tensor.name]
            if not _has_raw(tensor) or size_bytes(weight) <= INLINE_BYTES:
                continue
            file.write(b"\0" * (-file.tell() % EXTERNAL_ALIGN_BYTES))
            entries = {"location": data.name, "offset": file.tell(), "length": size_bytes(weight)}
            file.write(weight.raw())
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
    return model


def _parse(buffer: memoryview, path: Path | None, name: str) -> Model:
    """Skeleton and weights of a message."""
    try:
        skeleton, held = _split(buffer)
        proto = ModelProto()
        proto.ParseFromString(skeleton)
    except Exception as problem:  # protobuf's DecodeError has no stable home
        raise ModelError(
            "model-not-onnx", f"{name} is not an ONNX model or is cut off: {problem}"
        ) from problem
    if not proto.graph.node and not proto.graph.output and not proto.opset_import:
        raise ModelError(
            "model-not-onnx", f"{name} is not an ONNX model: it has neither nodes nor outputs"
        )
    weights: dict[str, Weight] = {}
    files: dict[Path, BinaryIO] = {}
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            raise ModelError("model-invalid", f"{name} has two initializers named {tensor.name!r}")
        weights[tensor.name] = _weight(tensor, held.get(tensor.name), path, files)
        for values in (
            "raw_data",
            "float_data",
            "int32_data",
            "int64_data",
            "double_data",
            "uint64_data",
            "external_data",
            "data_location",
        ):
            if tensor.data_type != TensorProto.STRING:
                tensor.ClearField(values)
    return Model(proto, weights, path)


def _split(buffer: memoryview) -> tuple[bytes, dict[str, memoryview]]:
    """The message without the large raw_data of its top-level initializers, and those by tensor name."""
    pieces: list[bytes | memoryview] = []
    held: dict[str, memoryview] = {}
    for top in wire.fields(buffer, 0, len(buffer)):
        if top.number != wire.GRAPH_FIELD or not top.is_bytes:
            pieces.append(buffer[top.start : top.end])
            continue
        graph: list[bytes | memoryview] = []
        for item in wire.fields(buffer, top.body, top.end):
            if (
                item.number == wire.INITIALIZER_FIELD
                and item.is_bytes
                and item.end - item.body > INLINE_BYTES
            ):
                graph.append(_split_tensor(buffer, item, held))
            else:
                graph.append(buffer[item.start : item.end])
        pieces += [wire.header(wire.GRAPH_FIELD, sum(map(len, graph))), *graph]
    return b"".join(pieces), held


def _split_tensor(buffer: memoryview, item: wire.Field, held: dict[str, memoryview]) -> bytes:
    """An initializer field without its raw_data, which goes to `held`."""
    parts = list(wire.fields(buffer, item.body, item.end))
    raw = [p for p in parts if p.number == wire.RAW_DATA_FIELD]
    rest = b"".join(buffer[p.start : p.end] for p in parts if p.number != wire.RAW_DATA_FIELD)
    if raw:
        tensor = TensorProto()
        tensor.ParseFromString(rest)
        held[tensor.name] = buffer[raw[-1].body : raw[-1].end]
    return wire.header(wire.INITIALIZER_FIELD, len(rest)) + rest


def _weight(
    tensor: TensorProto, data: memoryview | None, path: Path | None, files: dict[Path, BinaryIO]
) -> Weight:
    """Values of one initializer, checked against its type and shape."""
    shape = tuple(tensor.dims)
    if (
        tensor.data_type not in TensorProto.DataType.values()
        or tensor.data_type == TensorProto.UNDEFINED
        or min(shape, default=0) < 0
    ):
        raise ModelError(
            "model-invalid",
            f"initializer {tensor.name!r} has type {tensor.data_type} and shape {shape}",
        )
    expected = size_bytes(_Shape(tensor.data_type, shape))
    if tensor.data_location == TensorProto.EXTERNAL:
        file, offset, length = _external(tensor, path, files)
        if length != expected:
            raise ModelError(
                "model-truncated",
                f"initializer {tensor.name!r} of shape {shape} holds {length} bytes, not {expected}",
            )
        return Mapped(tensor.data_type, shape, file, offset, length)
    if data is None and tensor.HasField("raw_data"):
        data = memoryview(tensor.raw_data)
    if data is None:
        try:
            return from_proto(tensor)
        except Exception as problem:
            raise ModelError(
                "model-invalid", f"initializer {tensor.name!r} cannot be read: {problem}"
            ) from problem
    if len(data) != expected:
        raise ModelError(
            "model-truncated",
            f"initializer {tensor.name!r} of shape {shape} holds {len(data)} bytes, not {expected}",
        )
    return Stored(tensor.data_type, shape, data)


@dataclass(frozen=True)
class _Shape:
    """Type and shape, to compute a size from."""

    dtype: int
    shape: tuple[int, ...]


def _external(
    tensor: TensorProto, path: Path | None, files: dict[Path, BinaryIO]
) -> tuple[BinaryIO, int, int]:
    """(file, offset, length) of an initializer that lies in another file. `files`: those that are open already."""
    info = {e.key: e.value for e in tensor.external_data}
    location = info.get("location", "")
    if path is None:
        raise ModelError(
            "external-data",
            f"initializer {tensor.name!r} lies in {location!r}, and the model was not read from a file",
        )
    folder = path.resolve().parent
    try:
        file_path = (folder / location).resolve()
        if not location or not file_path.is_relative_to(folder):
            raise ModelError(
                "external-data-outside",
                f"initializer {tensor.name!r} points to {location[:_LONGEST_NAME]!r}, outside of the model's folder",
            )
        offset = int(info.get("offset") or 0)
        if file_path not in files:
            files[file_path] = open(file_path, "rb")  # noqa: SIM115 (stays open as long as the weights; a renamed or replaced file does no harm)
        available = os.fstat(files[file_path].fileno()).st_size
        length = int(info.get("length") or available - offset)
        if offset < 0 or length < 0 or offset + length > available:
            raise ModelError(
                "external-data",
                f"{location} has {available} bytes; initializer {tensor.name!r} needs {offset + length}",
            )
        return files[file_path], offset, length
    except OSError as problem:
        raise ModelError(
            "external-data",
            f"cannot read {location[:_LONGEST_NAME]!r}, the external data of {tensor.name!r}: {problem.strerror}",
        ) from problem
    except ValueError as problem:
        raise ModelError(
            "external-data",
            f"initializer {tensor.name!r} has an invalid external location: {problem}",
        ) from problem
