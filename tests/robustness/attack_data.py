"""Images and arrays that are much larger than their files."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.robustness.attack_list import MODEL, OUTPUT, attack, optimize, optimize_with_data

NPY_VERSION = b"\x93NUMPY\x01\x00"
CHUNK = bytes(1 << 24)

# Images


def _png(path: Path, side: int, chunks: bytes = b"") -> None:
    """Write a black image without holding it."""
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.write(_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)))
        file.write(chunks)
        packer = zlib.compressobj(9)
        row = bytes(1 + 3 * side)
        for _ in range(side):
            packed = packer.compress(row)
            if packed:
                file.write(_chunk(b"IDAT", packed))
        file.write(_chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b""))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _image(folder: Path, side: int, chunks: bytes = b"", count: int = 4) -> list[str]:
    (folder / "images").mkdir()
    for number in range(count):
        _png(folder / "images" / f"{number}.png", side, chunks)
    return optimize_with_data("images")


@attack("four PNG of 13,000 x 13,000")
def image(folder: Path) -> list[str]:
    return _image(folder, 13_000)


@attack("one PNG of 8,100 x 8,100, the largest that is read")
def allowed_image(folder: Path) -> list[str]:
    return _image(folder, 8_100, count=1)


@attack("PNG with a compressed text of 4 GB")
def image_text(folder: Path) -> list[str]:
    text = b"a\0\0" + b"".join(_deflate(1 << 32, raw=False))
    return _image(folder, 8, _chunk(b"zTXt", text))


@attack("PNG with a compressed color profile of 4 GB")
def image_profile(folder: Path) -> list[str]:
    profile = b"a\0\0" + b"".join(_deflate(1 << 32, raw=False))
    return _image(folder, 8, _chunk(b"iCCP", profile))


# Arrays


def _header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """Return the header of a .npy file."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return NPY_VERSION + struct.pack("<H", len(text)) + text


def _deflate(size: int, raw: bool = True, head: bytes = b"") -> Iterator[bytes]:
    """Yield compressed zeros after a head."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15 if raw else 15)
    yield packer.compress(head)
    for start in range(0, size, len(CHUNK)):
        yield packer.compress(CHUNK[: size - start])
    yield packer.flush()


def _zeros(path: Path, name: str, shape: tuple[int, ...], dtype: str = "<f4") -> None:
    """Add an array of zeros to an .npz without holding it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open(f"{name}.npy", "w", force_zip64=True) as member,
    ):
        member.write(_header(shape, dtype))
        for start in range(0, size, len(CHUNK)):
            member.write(CHUNK[: size - start])


@attack("a compressed array of 2 GB")
def array_bomb(folder: Path) -> list[str]:
    _zeros(folder / "data.npz", "images", (1 << 23, 1, 8, 8))
    return optimize_with_data("data.npz")


@attack("a compressed array of 2 GB along an inner axis")
def inner_bomb(folder: Path) -> list[str]:
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "a"], ["h"]),
                helper.make_node("MatMul", ["h", "b"], ["y"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, "N", 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, "N", 4])],
            [
                numpy_helper.from_array(np.ones((64, 32), np.float32), "a"),
                numpy_helper.from_array(np.ones((32, 4), np.float32), "b"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    _zeros(folder / "data.npz", "x", (8, 1 << 20, 64))
    command = ["optimize", "model.onnx", "-o", OUTPUT, "--data=data.npz", "--batch-axis=1"]
    return [*command, "--criterion=activation_mean", "--repair=bias", "--engine=none"]


@attack("labels whose compressed array has 2 GB")
def label_bomb(folder: Path) -> list[str]:
    _zeros(folder / "data.npz", "images", (4, 1, 8, 8))
    _zeros(folder / "data.npz", "labels", (4,), "<i8")
    _zeros(folder / "data.npz", "masks", (4, 1 << 13, 1 << 14))
    return optimize(MODEL, "--labeled=data.npz", "--metric=top1")


@attack("labeled images whose compressed array has 2 GB")
def labeled_bomb(folder: Path) -> list[str]:
    _zeros(folder / "data.npz", "images", (1 << 23, 1, 8, 8))
    _zeros(folder / "data.npz", "labels", (1 << 23,), "<i8")
    return optimize(MODEL, "--labeled=data.npz", "--metric=top1")


@attack("an array of 2^60 samples without values")
def empty_samples(folder: Path) -> list[str]:
    (folder / "data.npy").write_bytes(_header((1 << 60, 1, 8, 8), "<U0"))
    return optimize_with_data("data.npy")


@attack("a header of 2^60 samples")
def claim(folder: Path) -> list[str]:
    (folder / "data.npy").write_bytes(_header((1 << 60, 1, 8, 8)) + bytes(1 << 16))
    return optimize_with_data("data.npy")


@attack("a file with holes of 2^38 samples")
def sparse_file(folder: Path) -> list[str]:
    head = _header((1 << 34, 1, 8, 8))
    with (folder / "data.npy").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + (1 << 42))
    return optimize_with_data("data.npy")


@attack("an .npz whose directory claims 2^60 bytes")
def forged(folder: Path) -> list[str]:
    (folder / "data.npz").write_bytes(_archive(1, 1 << 60))
    return optimize_with_data("data.npz")


def _archive(count: int, size: int) -> bytes:
    """Return an archive of members that share their bytes, of which each has `size` bytes."""
    head = _header((size // 256, 1, 8, 8))
    packed = b"".join(_deflate(1 << 24, head=head))
    names = [b"images.npy", *(f"{i:06}.npy".encode() for i in range(1, count))]
    # the lengths of 32 bits refer to those of 64 in the extra field
    lengths = len(packed), (1 << 32) - 1
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 8, 0, 0, 0, *lengths, 10, 0) + names[0]
    extra = struct.pack("<HHQ", 1, 8, size + len(head))
    fixed = struct.pack("<4s6H3L", b"PK\1\2", 45, 45, 0, 8, 0, 0, 0, *lengths)
    rest = struct.pack("<5H2L", 10, len(extra), 0, 0, 0, 0, 0)
    table = b"".join(fixed + rest + name + extra for name in names)
    start = len(local) + len(packed)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(table), start, 0)
    return local + packed + table + end


@attack("an .npz of 200,000 members")
def members(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        for i in range(200_000):
            archive.writestr(f"{i}.npy", _header((0,)))
    return optimize_with_data("data.npz")


@attack("an .npz of 4,000 members of 256 MB that share their bytes")
def overlapping(folder: Path) -> list[str]:
    (folder / "data.npz").write_bytes(_archive(4_000, 1 << 28))
    return optimize_with_data("data.npz")
