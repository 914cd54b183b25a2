"""The protobuf wire format of an ONNX file, as far as needed to leave large weights in the file.

Only lengths and offsets are decoded here; onnx parses the rest. Field numbers are those of
onnx.proto: ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto.raw_data = 9.
Source: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

GRAPH_FIELD, INITIALIZER_FIELD, RAW_DATA_FIELD = 7, 5, 9
# a message over 2 GiB cannot be parsed; the margin is for the graph itself
PROTOBUF_LIMIT_BYTES = 2_000_000_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BITS = 70


class WireField(NamedTuple):
    """Position of one field of a message in a buffer.

    Attributes
    ----------
    number
        Field number.
    start, end
        The field occupies [start, end), its key included.
    body
        Start of its payload, which ends at `end`.
    is_bytes
        Whether the payload is length-delimited.
    """

    number: int
    start: int
    body: int
    end: int
    is_bytes: bool


def fields(buffer: memoryview, start: int, end: int) -> Iterator[WireField]:
    """Yield the fields of the message in buffer[start:end].

    Raises
    ------
    ValueError
        The bytes are not a protobuf message.
    """
    at = start
    while at < end:
        key, body = _read_varint(buffer, at, end)
        kind = key & 7
        if kind == _BYTES:
            length, body = _read_varint(buffer, body, end)
            after = body + length
        elif kind == _VARINT:
            _, after = _read_varint(buffer, body, end)
        elif kind in (_FIXED64, _FIXED32):
            after = body + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        # also guards against lengths that would make the caller read on
        if after > end:
            raise ValueError(f"field at byte {at} ends at {after}, the message at {end}")
        yield WireField(key >> 3, at, body, after, kind == _BYTES)
        at = after


def varint(value: int) -> bytes:
    """Encode a non-negative integer in base 128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def header(number: int, length: int) -> bytes:
    """Encode the key and length that precede a length-delimited payload."""
    return varint(number << 3 | _BYTES) + varint(length)


def _read_varint(buffer: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return (value, position after it)."""
    value = shift = 0
    while True:
        # at most ten bytes of seven bits
        if at >= end or shift >= _VARINT_BITS:
            raise ValueError(f"number at byte {at} does not end")
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
