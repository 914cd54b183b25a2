"""Input files of the runs: the demo network, generated networks, trained models of the zoo.

A file is made once, by its entry in `_FILES`, and both checkouts read the same copy.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ZOO_ARRAYS, ZOO_IMAGES = 96, 8  # inputs taken from the zoo: images of 32 x 32, large photographs
QUANTIZATION_INPUTS = 32
GENERATED_INPUTS = 64


@dataclass(frozen=True)
class Sources:
    """Where files come from.

    Attributes
    ----------
    checkout
        Its demo network and data are read.
    zoo
        Folder of trained models; it need not exist.
    """

    checkout: Path
    zoo: Path


class Unavailable(Exception):
    """A file of a run cannot be made here; the text says why."""


def make_file(name: str, sources: Sources, folder: Path) -> Path:
    """Make a file that runs read, unless it is there.

    Parameters
    ----------
    name
        A key of `_FILES`.
    folder
        Where it is kept until the end of all runs.

    Returns
    -------
    Path
        A file, or a folder of images.

    Raises
    ------
    Unavailable
        It needs trained models that are not there.
    """
    path = folder / name
    if not path.exists():
        # under another name first: an interrupted copy must not pass for the file
        draft = folder / f"draft-{name}"
        _FILES[name](draft, sources)
        draft.rename(path)
    return path


# ---- the demo network ----


def _copy_demo(name: str, path: Path, sources: Sources) -> None:
    """Copy a file of the demo, wherever the package keeps it."""
    found = sorted((sources.checkout / "onnxprune").rglob(name))
    if not found:
        raise Unavailable(f"no {name} in {sources.checkout}")
    shutil.copyfile(found[0], path)


def _quantize_demo(path: Path, sources: Sources) -> None:
    """Quantize the demo network to int8 QDQ form with onnxruntime."""
    # here, so that a list of the runs needs no onnxruntime
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    images = np.load(make_file("digits.npz", sources, path.parent))["images"]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"images": images[:QUANTIZATION_INPUTS]}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    logging.getLogger().setLevel(logging.ERROR)  # it advises an optimization that is not wanted
    quantize_static(
        make_file("digits.onnx", sources, path.parent),
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )


# ---- generated networks ----

_RESIDUAL = """
<ir_version: 8, opset_import: ["": 17]>
residual (float[N,3,12,12] x) => (float[N,5] y)
<float[16,3,3,3] w0, float[16,16,3,3] w1, float[16,16,3,3] small2, float[16,16,3,3] w3,
 float[16,16,3,3] small4, float[16,16,3,3] w5, float[16,16,3,3] small6,
 float[16] b0, float[5,16] w7>
{
    stem = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    r0 = Relu (stem)
    c1 = Conv <pads = [1, 1, 1, 1]> (r0, w1)
    a1 = Relu (c1)
    d1 = Conv <pads = [1, 1, 1, 1]> (a1, small2)
    s1 = Add (d1, r0)
    r1 = Relu (s1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w3)
    a2 = Relu (c2)
    d2 = Conv <pads = [1, 1, 1, 1]> (a2, small4)
    s2 = Add (d2, r1)
    r2 = Relu (s2)
    c3 = Conv <pads = [1, 1, 1, 1]> (r2, w5)
    a3 = Relu (c3)
    d3 = Conv <pads = [1, 1, 1, 1]> (a3, small6)
    s3 = Add (d3, r2)
    r3 = Relu (s3)
    p = GlobalAveragePool (r3)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w7)
}
"""
_RECURRENT = """
<ir_version: 8, opset_import: ["": 17]>
recurrent (float[N,10,6] x) => (float[N,5] y)
<int64[1] zero = {0}, int64[1] one = {1}, float[1,96,6] w0, float[1,96,24] r0, float[1,192] b0,
 float[1,64,24] w1, float[1,64,16] r1, float[5,16] w2>
{
    t = Transpose <perm = [1, 0, 2]> (x)
    h0, last0 = LSTM <hidden_size = 24> (t, w0, r0, b0)
    s0 = Squeeze (h0, one)
    h1, last1 = LSTM <hidden_size = 16> (s0, w1, r1)
    s1 = Squeeze (last1, zero)
    y = Gemm <transB = 1> (s1, w2)
}
"""
_TRANSFORMER = """
<ir_version: 8, opset_import: ["": 17]>
transformer (float[N,6,24] x) => (float[N,5] y)
<int64[4] heads = {0, 6, 4, 8}, int64[3] merged = {0, 6, 32}, float eight = {8.0},
 float[24,32] embed, float[32] gain0, float[32] shift0, float[32,32] wq, float[32,32] wk,
 float[32,32] wv, float[32,32] wo, float[32] gain1, float[32] shift1, float[32,64] up,
 float[64] bias, float[64,32] down, float[32,5] head>
{
    e = MatMul (x, embed)
    n0 = LayerNormalization (e, gain0, shift0)
    q = MatMul (n0, wq)
    k = MatMul (n0, wk)
    v = MatMul (n0, wv)
    q4 = Reshape (q, heads)
    k4 = Reshape (k, heads)
    v4 = Reshape (v, heads)
    qt = Transpose <perm = [0, 2, 1, 3]> (q4)
    kt = Transpose <perm = [0, 2, 3, 1]> (k4)
    vt = Transpose <perm = [0, 2, 1, 3]> (v4)
    scores = MatMul (qt, kt)
    scaled = Div (scores, eight)
    weights = Softmax <axis = -1> (scaled)
    mixed = MatMul (weights, vt)
    back = Transpose <perm = [0, 2, 1, 3]> (mixed)
    joined = Reshape (back, merged)
    o = MatMul (joined, wo)
    m = Add (e, o)
    n1 = LayerNormalization (m, gain1, shift1)
    u = MatMul (n1, up)
    ub = Add (u, bias)
    a = Relu (ub)
    d = MatMul (a, down)
    s = Add (m, d)
    pooled = ReduceMean <axes = [1], keepdims = 0> (s)
    y = MatMul (pooled, head)
}
"""


def _generate_network(text: str, path: Path, sources: Sources) -> None:
    """Write a network from ONNX text; weights without a value are drawn with a fixed seed."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        values = rng.standard_normal(shape) * (scale if len(shape) > 1 else 0.1)
        if info.name.startswith("gain"):
            values += 1
        if info.name.startswith("small"):
            values *= 0.1  # branches of little weight, which --blocks removes whole
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(values.astype(np.float32), info.name)
        )
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _generate_inputs(shape: tuple[int, ...], path: Path, sources: Sources) -> None:
    """Write seeded normal inputs of the tensor x."""
    values = np.random.default_rng(1).standard_normal((GENERATED_INPUTS, *shape))
    _write_arrays(path, x=values.astype(np.float32))


def _write_arrays(path: Path, **arrays: Any) -> None:
    """Write an .npz under exactly this name."""
    with open(path, "wb") as file:
        np.savez(file, **arrays)


# ---- trained models ----


def _copy_trained(model: str, path: Path, sources: Sources) -> None:
    """Copy a model of the zoo."""
    shutil.copyfile(_find_in_zoo(sources.zoo, _read_entry(sources.zoo, model)["file"]), path)


def _write_calibration(model: str, path: Path, sources: Sources) -> None:
    """Write preprocessed calibration images of a zoo model whose data need no resizing."""
    entry = _read_entry(sources.zoo, model)
    _write_preprocessed(path, sources.zoo, entry, entry["calib_data"], with_labels=False)


def _write_labelled(model: str, path: Path, sources: Sources) -> None:
    """Write preprocessed evaluation images of a zoo model with their labels."""
    entry = _read_entry(sources.zoo, model)
    _write_preprocessed(path, sources.zoo, entry, entry["eval_data"][0], with_labels=True)


def _write_preprocessed(path: Path, zoo: Path, entry: dict, data: str, with_labels: bool) -> None:
    """Apply (pixel * scale - mean) / std, as docs/zoo.md describes, and write NCHW float32."""
    with np.load(_find_in_zoo(zoo, f"data/{data}")) as stored:
        pixels = stored["images"][:ZOO_ARRAYS].astype(np.float32)
        labels = {"labels": stored["labels"][:ZOO_ARRAYS]} if with_labels else {}
    pre = entry["pre"]
    mean, std = np.float32(pre.get("mean", 0)), np.float32(pre.get("std", 1))
    values = (pixels * np.float32(pre.get("scale", 1)) - mean) / std
    graph = onnx.load(_find_in_zoo(zoo, entry["file"])).graph
    images = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    _write_arrays(path, **{graph.input[0].name: images}, **labels)


def _write_photographs(model: str, path: Path, sources: Sources) -> None:
    """Write the first calibration images of a zoo model as a folder of JPEG files."""
    data = _read_entry(sources.zoo, model)["calib_data"]
    with np.load(_find_in_zoo(sources.zoo, f"data/{data}")) as stored:
        blob, offsets = stored["jpeg"], stored["offsets"]
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for index in range(ZOO_IMAGES):
        image = blob[offsets[index] : offsets[index + 1]]
        (path / f"{index:03d}.jpg").write_bytes(image.tobytes())


def _read_entry(zoo: Path, model: str) -> dict:
    """Read the entry of a model from models.json."""
    text = _find_in_zoo(zoo, "models.json").read_text(encoding="utf-8")
    entries = json.loads(text)
    if model not in entries:
        raise Unavailable(f"no {model} in {zoo}")
    return dict(entries[model])


def _find_in_zoo(zoo: Path, name: str) -> Path:
    if not (zoo / name).is_file():
        raise Unavailable(f"no {name} in {zoo}; pass --zoo PATH or set ONNXPRUNE_ZOO")
    return zoo / name


_RESNET, _RESNET_BN = "cifar10_resnet20", "cifar10_resnet20_bn"
_VIT, _MOBILENET = "cifar10_vit_pgd_2_3_16", "imagenet_mobilenetv2_1.0_dq"
_SQUEEZENET, _YOLO = "imagenet_squeezenet1.1", "coco_yolofastestv2"

# File name -> how to make it.
_FILES: dict[str, Callable[[Path, Sources], None]] = {
    "digits.onnx": partial(_copy_demo, "digits.onnx"),
    "digits.npz": partial(_copy_demo, "digits_calibration.npz"),
    "labelled.npz": partial(_copy_demo, "digits_evaluation.npz"),
    "int8.onnx": _quantize_demo,
    "residual.onnx": partial(_generate_network, _RESIDUAL),
    "residual.npz": partial(_generate_inputs, (3, 12, 12)),
    "recurrent.onnx": partial(_generate_network, _RECURRENT),
    "recurrent.npz": partial(_generate_inputs, (10, 6)),
    "transformer.onnx": partial(_generate_network, _TRANSFORMER),
    "transformer.npz": partial(_generate_inputs, (6, 24)),
    "resnet20.onnx": partial(_copy_trained, _RESNET),
    "resnet20-bn.onnx": partial(_copy_trained, _RESNET_BN),
    "vit.onnx": partial(_copy_trained, _VIT),
    "mobilenet.onnx": partial(_copy_trained, _MOBILENET),
    "squeezenet.onnx": partial(_copy_trained, _SQUEEZENET),
    "yolo.onnx": partial(_copy_trained, _YOLO),
    "cifar10.npz": partial(_write_calibration, _RESNET),
    "cifar10-labelled.npz": partial(_write_labelled, _RESNET),
    "vit.npz": partial(_write_calibration, _VIT),
    "imagenet": partial(_write_photographs, _MOBILENET),
    "coco": partial(_write_photographs, _YOLO),
}
