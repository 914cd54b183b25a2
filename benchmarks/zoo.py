"""Trained models with real data, in a folder that anyone can rebuild: `--zoo FOLDER`.

FOLDER/models.json maps names to entries, FOLDER/<file> is an ONNX model, FOLDER/data/<name>.npz is
data. docs/zoo.md describes the keys of entries and arrays, and the public sources of the models.

    python -m benchmarks.zoo --zoo ../shared/zoo [--models NAME ...] [--onnx FILE] [--limit N]

prints the metrics of the models, or of a changed copy of one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runner import make_parser
from onnxprune.errors import DataError, OnnxpruneError, UsageError
from onnxprune.metrics.base import MetricOptions, Score

METRICS = {
    "classify": "top1",
    "person": "top1",
    "detect": "coco",
    "segment": "miou",
    "sr": "psnr_y",
}
PATCH = 64  # side of the low-resolution patches for the calibration of sr models
BATCH = {"segment": 1, "sr": 1}  # images of different or large sizes
USUAL_BATCH = 32


@dataclass(frozen=True)
class Entry:
    """A trained model and its data.

    Attributes
    ----------
    name
        Key in models.json.
    folder
        The folder of models.json.
    fields
        Value in models.json.
    """

    name: str
    folder: Path
    fields: Mapping[str, Any] = field(repr=False)

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / str(self.fields["file"])

    @property
    def task(self) -> str:
        """classify, person, detect, segment or sr."""
        return str(self.fields["task"])

    @property
    def metric(self) -> str:
        """The metric of its task."""
        return METRICS[self.task]

    @property
    def options(self) -> MetricOptions:
        """How to compare outputs with labels.

        Precision-recall curves are anchored, as in the evaluation script of the folder.
        """
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
        """Name and shape of the only input, None for dynamic sizes."""
        import onnx

        value = onnx.load(self.path, load_external_data=False).graph.input[0]
        return value.name, tuple(
            d.dim_value if d.HasField("dim_value") else None
            for d in value.type.tensor_type.shape.dim
        )


def open_zoo(folder: str | Path) -> dict[str, Entry]:
    """Return all entries by name; raise UsageError without models.json."""
    folder = Path(folder)
    try:
        entries = json.loads((folder / "models.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UsageError(
            "zoo-missing",
            f"{folder} is not a folder of trained models: {problem}; docs/zoo.md describes one",
        ) from problem
    return {name: Entry(name, folder, fields) for name, fields in entries.items()}


class Samples:
    """Labeled samples of a data file, preprocessed: a LabeledSource."""

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
        """Return an image as 8-bit RGB (h, w, 3)."""
        if self._offsets is None:
            return np.asarray(self._blob[index])
        from PIL import Image

        return np.array(
            Image.open(
                io.BytesIO(self._blob[self._offsets[index] : self._offsets[index + 1]].tobytes())
            )
        )

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Return the name, the input and the labels of a sample."""
        image = self.image(index)
        labels = {k: v[index] for k, v in self._labels.items() if k != "boxes"}
        if "boxes" in self._labels:
            labels["boxes"] = self._labels["boxes"][self._labels["boxes"][:, 0] == index]
        if self.entry.task == "sr":
            labels["targets"], image = reduced(image, int(self.entry.fields["scale"]))
        inputs = {self.name: prepared(image, self.entry.fields.get("pre", {}))}
        return f"{self.path.name} sample {index}", inputs, labels

    def describe(self) -> str:
        """Return a name for messages, as in `samples from coco_val_128.npz`."""
        return f"samples from {self.path.name}"

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
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
    """Evaluate a model.

    Parameters
    ----------
    entry
        Gives evaluation data and metric.
    model
        Path or loaded Model; by default the entry's own.
    limit
        Number of samples per file, from the first.
    metric
        Another metric than the entry's.

    Returns
    -------
    Score by evaluation file.
    """
    from onnxprune.data.labeled import open_labeled
    from onnxprune.ir.io import load
    from onnxprune.ir.runtime import Session
    from onnxprune.metrics.run import evaluate

    loaded = load(entry.path if model is None else model)
    inputs = Session(loaded, threads=threads).inputs
    scores = {}
    batch_size = BATCH.get(entry.task, USUAL_BATCH)
    for file in entry.fields["eval_data"]:
        data = open_labeled(Samples(entry, file), inputs)
        data = replace(data, chosen=data.chosen[:limit])
        scores[file] = evaluate(
            loaded,
            data,
            metric or entry.metric,
            entry.options,
            threads=threads,
            batch_size=batch_size,
        )
    return scores


def quality(entry: Entry, model: Path, limit: int | None, threads: int) -> dict[str, Any]:
    """Return value and standard error of the metric on the first evaluation file."""
    first = next(iter(score(entry, model, limit=limit, threads=threads).values()))
    return {
        "name": first.name,
        "value": first.value,
        "standard_error": first.standard_error,
        "n": first.n,
    }


def calibration(entry: Entry, samples: int = 256) -> np.ndarray:
    """Return the first calibration inputs, float32 (n, c, h, w) with n <= samples.

    Inputs of sr models are patches of PATCH x PATCH, in random order.
    """
    source = Samples(entry, str(entry.fields["calib_data"]))
    if entry.task != "sr":
        return np.stack([source.read(k)[1][source.name] for k in range(min(samples, source.count))])
    patches = []
    for index in range(source.count):
        image = source.read(index)[1][source.name]
        for top in range(0, image.shape[1] - PATCH + 1, PATCH):
            patches += [
                image[:, top : top + PATCH, left : left + PATCH]
                for left in range(0, image.shape[2] - PATCH + 1, PATCH)
            ]
    if not patches:
        raise DataError(
            "zoo-data",
            f"{source.path}: no reduced image has {PATCH} x {PATCH} pixels",
        )
    order = np.random.default_rng(0).permutation(len(patches))[:samples]
    return np.stack([patches[k] for k in order])


def calibration_file(entry: Entry, samples: int, path: str | Path) -> Path:
    """Write calibration inputs by name as .npz, for `--data`; return the path."""
    from onnxprune.files import replacing

    with replacing(path) as file:
        arrays: dict[str, Any] = {entry.input[0]: calibration(entry, samples)}
        np.savez(file, **arrays)
    return Path(path)


def prepared(image: np.ndarray, pre: Mapping[str, Any]) -> np.ndarray:
    """Preprocess an 8-bit RGB image (h, w, 3); return float32 (3, h, w).

    Raises OnnxpruneError if a resize needs OpenCV, which is not installed.
    """
    if side := pre.get("resize"):
        try:
            import cv2
        except ImportError:
            raise OnnxpruneError(
                "missing-opencv",
                "images of this model are resized by OpenCV: pip install opencv-python-headless",
            ) from None
        area = pre.get("interp") == "area"
        interpolation = cv2.INTER_AREA if area else cv2.INTER_LINEAR
        image = cv2.resize(image, (side, side), interpolation=interpolation)
    x: np.ndarray = image.astype(np.float32)
    if pre.get("order") == "bgr":
        x = x[..., ::-1]
    mean, std = (np.asarray(pre.get(k, d), np.float32) for k, d in (("mean", 0), ("std", 1)))
    x = (x * np.float32(pre.get("scale", 1)) - mean) / std
    return np.ascontiguousarray((x * np.float32(pre.get("post", 1))).transpose(2, 0, 1))


def reduced(image: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image cropped to multiples of `scale`, and its bicubic reduction."""
    from PIL import Image

    height, width = image.shape[0] // scale * scale, image.shape[1] // scale * scale
    target = image[:height, :width]
    small = (width // scale, height // scale)
    return target, np.array(Image.fromarray(target).resize(small, Image.Resampling.BICUBIC))


def main() -> None:
    """Print metrics of the models, or of one changed copy."""
    parser = make_parser(__doc__, "zoo", "models", "limit", "threads")
    parser.add_argument("--onnx", type=Path, help="changed copy of the one model in --models")
    options = parser.parse_args()
    entries = open_zoo(options.zoo)
    names = options.models or list(entries)
    if options.onnx and len(names) != 1:
        parser.error("--onnx needs exactly one name in --models")
    for name in names:
        if name not in entries:
            parser.error(f"no model {name!r}; the folder has {', '.join(entries)}")
        scores = score(entries[name], options.onnx, limit=options.limit, threads=options.threads)
        for file, result in scores.items():
            error = "" if result.standard_error is None else f" ± {result.standard_error:.4f}"
            text = f"{result.name:8} {result.value:.4f}{error} (n = {result.n})"
            print(f"{name:30} {file:30} {text}", flush=True)


if __name__ == "__main__":
    main()
