"""Values of initializers, which stay in their file until they are used."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from math import prod
from typing import BinaryIO, Protocol

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.errors import ModelError

# fields of a TensorProto that hold or locate its values
VALUE_FIELDS = """
    raw_data float_data int32_data int64_data double_data uint64_data external_data data_location
""".split()
BLOCK_BYTES = 1 << 26  # of a weight that are indexed at a time


class Typed(Protocol):
    """Type and shape, which determine the size of a tensor."""

    @property
    def dtype(self) -> int:
        """TensorProto.DataType of the elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""


class Weight(Typed, Protocol):
    """Values of an initializer."""

    def array(self) -> np.ndarray:
        """Return the values, read-only if they are a view of a file; 4-bit types are unpacked."""

    def raw(self) -> memoryview | bytes:
        """Return the little-endian bytes as in TensorProto.raw_data."""


@dataclass(frozen=True)
class BufferWeight:
    """Bytes of a mapped file or of a message in memory."""

    dtype: int
    shape: tuple[int, ...]
    data: memoryview = field(repr=False, compare=False)

    def array(self) -> np.ndarray:
        """Return the values as a view of the buffer, or a copy if numpy lacks the type."""
        data = self.raw()
        if self.dtype in _PLAIN:
            return np.frombuffer(data, _PLAIN[self.dtype]).reshape(self.shape)
        return numpy_helper.to_array(
            TensorProto(data_type=self.dtype, dims=self.shape, raw_data=bytes(data))
        )

    def raw(self) -> memoryview:
        """Return the bytes; ModelError if the file was truncated since it was opened."""
        file = self.data.obj
        # a read beyond the end of a mapped file would kill the process (SIGBUS)
        if isinstance(file, mmap.mmap) and file.size() < len(file):
            raise _truncation_error()
        return self.data


@dataclass(frozen=True)
class FileWeight:
    """Part of an open file.

    It is mapped anew for each access, so that values stay in memory only while they are used.
    """

    dtype: int
    shape: tuple[int, ...]
    file: BinaryIO = field(repr=False, compare=False)
    offset: int
    length: int

    def array(self) -> np.ndarray:
        """Return the values as a view of the file."""
        return BufferWeight(self.dtype, self.shape, self.raw()).array()

    def raw(self) -> memoryview:
        """Return the bytes; ModelError if the file was truncated since it was opened."""
        if not self.length:
            return memoryview(b"")
        # a mapping begins at a page boundary
        start = self.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        skip = self.offset - start
        try:
            mapped = mmap.mmap(
                self.file.fileno(), self.length + skip, access=mmap.ACCESS_READ, offset=start
            )
        # mmap raises ValueError for a range beyond the end of the file
        except ValueError:
            raise _truncation_error() from None
        return memoryview(mapped)[skip:]


@dataclass(frozen=True)
class ArrayWeight:
    """Values in memory."""

    dtype: int
    values: np.ndarray = field(repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.values.shape

    def array(self) -> np.ndarray:
        """Return the values, not a copy."""
        return self.values

    def raw(self) -> memoryview | bytes:
        """Return the values in C order."""
        if self.dtype in _PLAIN:
            # little-endian in files, also on machines of the other byte order
            return np.ascontiguousarray(self.values, _PLAIN[self.dtype]).tobytes()
        return numpy_helper.from_array(self.values).raw_data


@dataclass(frozen=True)
class SlicedWeight:
    """Selected positions of another weight, copied only when used.

    Attributes
    ----------
    base
        The weight to select from.
    keep
        Kept positions per axis (index array), None for all.
    """

    base: Weight
    keep: tuple[np.ndarray | None, ...] = field(compare=False)

    @property
    def dtype(self) -> int:
        """TensorProto.DataType of the elements."""
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes after the selection."""
        return tuple(
            n if k is None else len(k) for n, k in zip(self.base.shape, self.keep, strict=False)
        )

    def array(self) -> np.ndarray:
        """Return a copy of the selected values, made in blocks to limit the peak memory."""
        values = self.base.array()
        # small weights are indexed at once; vectors have no rows to take in blocks
        if values.ndim < 2 or values.nbytes <= BLOCK_BYTES:
            return _select(values, self.keep)
        out = np.empty(self.shape, values.dtype)
        rows = self.keep[0] if self.keep[0] is not None else np.arange(len(values))
        # rows per block
        step = max(1, BLOCK_BYTES * len(values) // values.nbytes)
        for at in range(0, len(rows), step):
            out[at : at + step] = _select(values, (rows[at : at + step], *self.keep[1:]))
        return out

    def raw(self) -> memoryview | bytes:
        """Return the selected values in C order."""
        return ArrayWeight(self.dtype, self.array()).raw()


@dataclass(frozen=True)
class SparseWeight:
    """Values of a sparse tensor, made dense only when used.

    Attributes
    ----------
    values
        Nonzero values.
    indices
        Position of each in the flattened tensor.
    """

    dtype: int
    shape: tuple[int, ...]
    values: np.ndarray = field(repr=False, compare=False)
    indices: np.ndarray = field(repr=False, compare=False)

    def array(self) -> np.ndarray:
        """Return the dense tensor."""
        out = np.zeros(self.shape, self.values.dtype)
        out.reshape(-1)[self.indices] = self.values
        return out

    def raw(self) -> memoryview | bytes:
        """Return the dense values in C order."""
        return ArrayWeight(self.dtype, self.array()).raw()


def _truncation_error() -> ModelError:
    return ModelError(
        "model-changed",
        "a file of the model was truncated while its weights were in use; "
        "run again when no other process writes to it",
    )


def _select(values: np.ndarray, keep: tuple[np.ndarray | None, ...]) -> np.ndarray:
    """Return the kept positions of each axis."""
    for axis, index in enumerate(keep):
        if index is not None:
            values = np.take(values, index, axis)
    return values


def from_array(values: np.ndarray) -> ArrayWeight:
    """Return a weight of the ONNX type that matches the array's dtype."""
    return ArrayWeight(onnx.helper.np_dtype_to_tensor_dtype(values.dtype), values)


def from_proto(tensor: TensorProto) -> Weight:
    """Return a weight with a copy of a message's values, from any of its fields."""
    return ArrayWeight(tensor.data_type, numpy_helper.to_array(tensor))


def declared_size(tensor: TensorProto, what: str) -> int:
    """Return the bytes that a message's type and shape imply.

    Parameters
    ----------
    what
        Description of the tensor, for messages.

    Raises
    ------
    ModelError
        The type is unknown, a length is negative, or the size exceeds 2^63 bytes.
    """
    shape = tuple(tensor.dims)
    known_type = tensor.data_type in TensorProto.DataType.values()
    if not known_type or tensor.data_type == TensorProto.UNDEFINED or min(shape, default=0) < 0:
        raise ModelError("model-invalid", f"{what} has type {tensor.data_type} and shape {shape}")
    size = _count_elements(tensor.data_type, shape)
    if size.bit_length() > 63:
        raise ModelError("model-invalid", f"{what} of rank {len(shape)} has over 2^63 bytes")
    return size


def size_bytes(weight: Typed) -> int:
    """Return the bytes that the values take in a file, without reading them."""
    if isinstance(weight, BufferWeight):
        return len(weight.data)
    if isinstance(weight, FileWeight):
        return weight.length
    return _count_elements(weight.dtype, weight.shape)


def _count_elements(dtype: int, shape: tuple[int, ...]) -> int:
    # Python's integers, because a shape may describe more elements than int64 holds
    return -(-prod(shape) * bits(dtype) // 8)


def bits(dtype: int) -> int:
    """Return the bits per element in raw_data; 0 for strings."""
    if dtype in _PLAIN:
        return np.dtype(_PLAIN[dtype]).itemsize * 8
    return _ODD_BITS.get(dtype, 8 if dtype != TensorProto.STRING else 0)


# types that numpy has
_PLAIN: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.DOUBLE: "<f8",
    TensorProto.FLOAT16: "<f2",
    TensorProto.INT8: "|i1",
    TensorProto.UINT8: "|u1",
    TensorProto.INT16: "<i2",
    TensorProto.UINT16: "<u2",
    TensorProto.INT32: "<i4",
    TensorProto.UINT32: "<u4",
    TensorProto.INT64: "<i8",
    TensorProto.UINT64: "<u8",
    TensorProto.BOOL: "|b1",
    TensorProto.COMPLEX64: "<c8",
    TensorProto.COMPLEX128: "<c16",
}
# others than 8 bits, as far as the installed onnx has them
_ODD_BITS = {TensorProto.BFLOAT16: 16} | {
    getattr(TensorProto, name): width
    for name, width in {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.items()
    if hasattr(TensorProto, name)
}
