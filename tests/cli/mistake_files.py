"""Files that the commands in mistakes.py name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from onnxprune import demo

RGB = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 3, 8, 8] image) => (float[n, 3] class) {
    c = Conv <kernel_shape=[1, 1]> (image, w, b)
    r = Relu (c)
    d = Conv <kernel_shape=[1, 1]> (r, v)
    p = GlobalAveragePool (d)
    class = Flatten (p)
}
"""


def write_files(folder: Path) -> None:
    """Write the files that the commands name."""
    digits = demo.files().model
    data = digits.read_bytes()
    for name in ("folder", "photos", "empty", "corrupt", "some"):
        (folder / name).mkdir()
    (folder / "digits.onnx").write_bytes(data)
    (folder / "folder" / "digits.onnx").write_bytes(data)
    (folder / "cut.onnx").write_bytes(data[: len(data) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "text.onnx").write_text("<html>404 Not Found</html>")
    for suffix in "pt pth pb tflite h5 engine safetensors".split():
        (folder / f"net.{suffix}").write_bytes(b"PK\x03\x04 something else")
    for name in ("lfs.onnx", "lfs.npz"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    proto = onnx.load_from_string(data)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    onnx.save(proto, folder / "external.onnx")
    (folder / "notes.txt").write_text("photos/a.jpg")
    (folder / "photos.txt").write_text("photos/none.jpg 0")
    (folder / "photos" / "notes.txt").write_text("none")
    (folder / "loader.py").write_text(
        "import numpy as np\n"
        "def broken():\n    yield 1 / 0\n"
        "def batches():\n    yield np.zeros((4, 3, 8, 8), np.float32)\n"
    )
    (folder / "bad.toml").write_text("rount_to = 8\n")
    (folder / "bad.json").write_text("{}")
    _write_rgb(folder)


def _write_rgb(folder: Path) -> None:
    """Write a model that finds the strongest color, and data for it."""
    generator = np.random.default_rng(0)
    weight = np.zeros((12, 3, 1, 1), np.float32)
    weight[:, :, 0, 0] = np.tile(np.eye(3), (4, 1)) + generator.uniform(0, 0.1, (12, 3))
    second = np.zeros((3, 12, 1, 1), np.float32)
    second[:, :, 0, 0] = np.tile(np.eye(3), (1, 4)) + generator.uniform(0, 0.1, (3, 12))
    bias = np.full(12, 0.05, np.float32)
    model = onnx.parser.parse_model(RGB)
    for name, array in (("w", weight), ("b", bias), ("v", second)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, folder / "rgb.onnx")
    labels = np.arange(90) % 3
    images = generator.integers(20, 120, (90, 8, 8, 3))
    images[np.arange(90), :, :, labels] += 100
    pixels, floats = images.astype(np.uint8), (images / 255).astype(np.float32)
    first = floats.transpose(0, 3, 1, 2)
    for name, arrays in {
        "rgb": {"images": pixels, "labels": labels},
        "shuffled": {"images": pixels, "labels": (labels + 1) % 3},
        "one": {"images": pixels[labels == 0], "labels": labels[labels == 0]},
        "few": {"images": pixels, "labels": labels[:30]},
        "high": {"images": pixels, "labels": labels + 1},
        "images": {"images": pixels},
        "names": {"img": first},
        "nhwc": {"image": floats},
        "size": {"image": first[:, :, :6, :6]},
        "gray": {"image": pixels[..., 0]},
        "int": {"image": images.transpose(0, 3, 1, 2)},
        "nan": {"image": np.where(first > 0.8, np.nan, first)},
        "none": {"image": first[:0]},
        "raw": {"image": images.transpose(0, 3, 1, 2).astype(np.float32)},
        "tokens": {"input_ids": labels.reshape(9, 10)},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "cut.npz").write_bytes((folder / "rgb.npz").read_bytes()[:2000])
    from PIL import Image

    for number in range(20):
        Image.fromarray(pixels[number]).save(folder / "some" / f"{number:02}.png")
    whole = (folder / "some" / "00.png").read_bytes()
    (folder / "some" / "20.png").write_bytes(whole[: len(whole) // 2])
    for number in range(3):
        (folder / "corrupt" / f"{number}.png").write_bytes(whole[:20])
