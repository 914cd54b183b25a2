"""Changes to the bytes of a file: (Generator, bytes) -> bytes, listed by name in `BYTES`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.ir import wire
from tests.robustness.draws import pick


def _at(rng: np.random.Generator, data: bytearray, most: int = 1) -> int:
    return int(rng.integers(0, max(1, len(data) - most)))


def _flip(rng: np.random.Generator, data: bytearray) -> bytearray:
    for _ in range(int(rng.integers(1, 9))):
        data[_at(rng, data)] ^= 1 << int(rng.integers(8))
    return data


def _noise(rng: np.random.Generator, data: bytearray) -> bytearray:
    at, length = _at(rng, data), int(rng.integers(1, 64))
    data[at : at + length] = rng.bytes(length)
    return data


def _remove(rng: np.random.Generator, data: bytearray) -> bytearray:
    at = _at(rng, data)
    del data[at : at + int(rng.integers(1, 200))]
    return data


def _repeat(rng: np.random.Generator, data: bytearray) -> bytearray:
    at = _at(rng, data)
    piece = data[at : at + int(rng.integers(1, 400))]
    data[at:at] = piece * int(rng.integers(1, 20))
    return data


def _truncate(rng: np.random.Generator, data: bytearray) -> bytearray:
    return data[: _at(rng, data)]


def _varint(rng: np.random.Generator, data: bytearray) -> bytearray:
    data[_at(rng, data) : 0] = b"\xff" * int(rng.integers(1, 12)) + b"\x01"
    return data


def _move(rng: np.random.Generator, data: bytearray) -> bytearray:
    at, length = _at(rng, data), int(rng.integers(1, 200))
    piece = data[at : at + length]
    del data[at : at + length]
    to = _at(rng, data)
    data[to:to] = piece
    return data


def _deeper(rng: np.random.Generator, data: bytearray) -> bytearray:
    """Append nested If nodes, deeper than protobuf reads."""
    inner = b""
    for _ in range(int(pick(rng, (24, 26, 40, 1000)))):
        # AttributeProto.g, NodeProto.attribute, GraphProto.node
        for number in (wire.GRAPH_FIELD - 1, 5, 1):
            inner = wire.header(number, len(inner)) + inner
    return data + wire.header(wire.GRAPH_FIELD, len(inner)) + inner


BYTES: dict[str, Callable[[np.random.Generator, bytearray], bytearray]] = {
    "flip": _flip,
    "noise": _noise,
    "remove": _remove,
    "repeat": _repeat,
    "truncate": _truncate,
    "varint": _varint,
    "move": _move,
    "deeper": _deeper,
}
