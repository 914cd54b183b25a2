"""Initializers that stay in their file until somebody asks for their values."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.errors import ModelError

BLOCK_BYTES = 1 << 26  # of a weight that are sliced at a time


class Typed(Protocol):
    """What the size of an initializer follows from. dtype: TensorProto.DataType; shape: of the values."""

    @property
    def dtype(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Weight(Typed, Protocol):
    """An initializer's values."""

    def array(self) -> np.ndarray:
        """The values, read-only where they are a view of a file; 4-bit types come unpacked."""

    def raw(self) -> memoryview | bytes:
        """Little-endian bytes as TensorProto.raw_data holds them."""


@dataclass(frozen=True)
class Stored:
    """Bytes of a mapped file or of a message in memory."""

    dtype: int
    shape: tuple[int, ...]
    data: memoryview = field(repr=False, compare=False)

    def array(self) -> np.ndarray:
        data = self.raw()
        if self.dtype in _PLAIN:
            return np.frombuffer(data, _PLAIN[self.dtype]).reshape(self.shape)
        return numpy_helper.to_array(
            TensorProto(data_type=self.dtype, dims=self.shape, raw_data=bytes(data))
        )

    def raw(self) -> memoryview:
        file = self.data.obj
        if isinstance(file, mmap.mmap) and file.size() < len(
            file
        ):  # to read on would be the end of the process (SIGBUS)
            raise _shortened()
        return self.data


@dataclass(frozen=True)
class Mapped:
    """A part of an open file, mapped anew each time it is asked for: what was read is not held, however large the model."""

    dtype: int
    shape: tuple[int, ...]
    file: BinaryIO = field(repr=False, compare=False)
    offset: int
    length: int

    def array(self) -> np.ndarray:
        return Stored(self.dtype, self.shape, self.raw()).array()

    def raw(self) -> memoryview:
        if not self.length:
            return memoryview(b"")
        start = self.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        skip = self.offset - start
        try:
            return memoryview(
                mmap.mmap(
                    self.file.fileno(), self.length + skip, access=mmap.ACCESS_READ, offset=start
                )
            )[skip:]
        except ValueError:
            raise _shortened() from None


@dataclass(frozen=True)
class Array:
    """Values in memory."""

    dtype: int
    values: np.ndarray = field(repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def array(self) -> np.ndarray:
        return self.values

    def raw(self) -> memoryview | bytes:
        if self.dtype in _PLAIN:
            return np.ascontiguousarray(self.values, _PLAIN[self.dtype]).tobytes()
        return numpy_helper.from_array(self.values).raw_data


@dataclass(frozen=True)
class Sliced:
    """Some positions of another weight, taken when asked for. keep: an index array an axis, None = all."""

    base: Weight
    keep: tuple[np.ndarray | None, ...] = field(compare=False)

    @property
    def dtype(self) -> int:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(
            n if k is None else len(k) for n, k in zip(self.base.shape, self.keep, strict=False)
        )

    def array(self) -> np.ndarray:
        values = self.base.array()
        if values.ndim < 2 or values.nbytes <= BLOCK_BYTES:
            return _taken(values, self.keep)
        out = np.empty(self.shape, values.dtype)
        rows = self.keep[0] if self.keep[0] is not None else np.arange(len(values))
        step = max(1, BLOCK_BYTES * len(values) // values.nbytes)
        for at in range(0, len(rows), step):
            out[at : at + step] = _taken(values, (rows[at : at + step], *self.keep[1:]))
        return out

    def raw(self) -> memoryview | bytes:
        return Array(self.dtype, self.array()).raw()


@dataclass(frozen=True)
class Scattered:
    """Values of a sparse tensor, laid out among zeros when asked for. places: of each in the flat tensor."""

    dtype: int
    shape: tuple[int, ...]
    values: np.ndarray = field(repr=False, compare=False)
    places: np.ndarray = field(repr=False, compare=False)

    def array(self) -> np.ndarray:
        out = np.zeros(self.shape, self.values.dtype)
        out.reshape(-1)[self.places] = self.values
        return out

    def raw(self) -> memoryview | bytes:
        return Array(self.dtype, self.array()).raw()


def _shortened() -> ModelError:
    return ModelError(
        "model-changed",
        "a file of the model became shorter while its weights were in use; run again once nothing writes to it",
    )


def _taken(values: np.ndarray, keep: tuple[np.ndarray | None, ...]) -> np.ndarray:
    """Positions of each axis."""
    for axis, index in enumerate(keep):
        if index is not None:
            values = np.take(values, index, axis)
    return values


def from_array(values: np.ndarray) -> Array:
    """A weight of the ONNX type that belongs to the array's dtype."""
    return Array(onnx.helper.np_dtype_to_tensor_dtype(values.dtype), values)


def from_proto(tensor: TensorProto) -> Weight:
    """A weight that holds a small message's values, whatever field they are in."""
    return Array(tensor.data_type, numpy_helper.to_array(tensor))


def size_bytes(weight: Typed) -> int:
    """What the values take in a file, without copying them."""
    if isinstance(weight, Stored):
        return len(weight.data)
    if isinstance(weight, Mapped):
        return weight.length
    count = int(np.prod(weight.shape, dtype=np.int64))
    return -(-count * bits(weight.dtype) // 8)


def bits(dtype: int) -> int:
    """Bits an element takes in raw_data; 0 for strings."""
    if dtype in _PLAIN:
        return np.dtype(_PLAIN[dtype]).itemsize * 8
    return _ODD_BITS.get(dtype, 8 if dtype != TensorProto.STRING else 0)


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
_ODD_BITS = {TensorProto.BFLOAT16: 16} | {
    getattr(TensorProto, name): width
    for name, width in {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.items()
    if hasattr(TensorProto, name)
}
