"""Files that people pass in place of an ONNX model, and how to get one from each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from onnxprune.errors import ModelError
from onnxprune.files import open_regular

_TORCH = "export it: torch.onnx.export(model, inputs, 'model.onnx')"
_TENSORFLOW = "convert it: python -m tf2onnx.convert"
# suffix -> (what it is, what to do)
KINDS = {
    ".pt": ("a PyTorch file", _TORCH),
    ".pth": ("a PyTorch file", _TORCH),
    ".ckpt": ("a training checkpoint", _TORCH),
    ".safetensors": ("a file of weights without a graph", _TORCH),
    ".pb": ("a TensorFlow graph", f"{_TENSORFLOW} --graphdef FILE --output model.onnx"),
    ".tflite": ("a TFLite model", f"{_TENSORFLOW} --tflite FILE --output model.onnx"),
    ".h5": ("a Keras model", f"{_TENSORFLOW} --keras FILE --output model.onnx"),
    ".keras": ("a Keras model", f"{_TENSORFLOW} --keras FILE --output model.onnx"),
    ".engine": ("a TensorRT engine", "pass the ONNX model that it was built from"),
    ".plan": ("a TensorRT engine", "pass the ONNX model that it was built from"),
    ".trt": ("a TensorRT engine", "pass the ONNX model that it was built from"),
    ".ort": ("a model in onnxruntime's own format", "pass the ONNX model that it was made from"),
    ".xml": ("an OpenVINO model", "pass the ONNX model that it was converted from"),
    ".mlmodel": ("a Core ML model", "pass the ONNX model that it was converted from"),
    ".mlpackage": ("a Core ML model", "pass the ONNX model that it was converted from"),
    ".pdmodel": ("a Paddle model", "convert it: paddle2onnx --model_filename FILE"),
}
_URL = re.compile(r"[a-z][a-z0-9+]+:/", re.IGNORECASE)
_LFS = b"version https://git-lfs"


def is_address(path: str | Path) -> bool:
    """Return whether a path that does not exist is an address, such as https://host/file."""
    return bool(_URL.match(str(path)))


def is_pointer(path: Path) -> bool:
    """Return whether a file is what Git LFS leaves in place of a large one."""
    with open_regular(path) as file:
        return file.read(len(_LFS)) == _LFS


def check_place(path: Path) -> None:
    """Raise ModelError for missing files, and with the next step for addresses and folders."""
    # a path that exists is a file, whatever its name looks like
    if is_address(path) and not path.exists():
        # a path has lost one of the two slashes
        address = str(path).replace(":/", "://", 1)
        raise ModelError(
            "model-kind", f"{address} is an address: download the file, and pass its path"
        )
    with contextlib.suppress(ValueError):  # names that no system has
        try:
            path.stat()
        except OSError as problem:
            message = f"cannot read {path}: {problem.strerror}"
            raise ModelError("model-unreadable", message) from problem
    # a folder may be a model of another kind, whose suffix says more
    if path.is_dir() and path.suffix.lower() not in KINDS:
        names = sorted(p.name for p in path.glob("*.onnx"))
        found = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        hint = f"its models: {found}" if names else "it holds no .onnx file"
        raise ModelError(
            "model-unreadable", f"cannot read {path}: it is a folder, not a regular file; {hint}"
        )


@contextlib.contextmanager
def explain_kind(path: Path) -> Iterator[None]:
    """Name what a file is that is not ONNX, by its first line or its suffix, and the next step."""
    try:
        yield
    except ModelError as problem:
        # a suffix alone proves nothing: ONNX files are also named .pb
        if problem.code not in ("model-not-onnx", "model-empty"):
            raise
        if is_pointer(path):
            text = "a Git LFS pointer; fetch it: git lfs pull"
        elif path.suffix.lower() in KINDS:
            text = "{}, not ONNX; {}".format(*KINDS[path.suffix.lower()])
        else:
            raise
        raise ModelError("model-kind", f"{path} is {text}") from problem
