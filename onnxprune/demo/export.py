"""Files of the demo under the names that the documentation uses."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from onnxprune.demo import files
from onnxprune.errors import OutputError
from onnxprune.files import write_bytes


def write_files(folder: str | os.PathLike[str], overwrite: bool = False) -> list[Path]:
    """Write the demo's files into a folder, under the names that the documentation uses.

    Parameters
    ----------
    overwrite
        Whether existing files of these names are replaced.

    Returns
    -------
    model.onnx, images/ (the calibration images as PNG, gray), calibration.npz and evaluation.npz.
    """
    from PIL import Image

    target, sources = Path(folder), files()
    names = ("model.onnx", "images", "calibration.npz", "evaluation.npz")
    model, images, calibration, evaluation = written = [target / name for name in names]
    existing = [path for path in written if path.exists()]
    if existing and not overwrite:
        raise OutputError(
            "output-exists",
            f"{existing[0]} exists; pass --overwrite (overwrite=True) to replace it",
        )
    copies = ((model, sources.model), (calibration, sources.calibration))
    try:
        images.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OutputError(
            "output-unwritable", f"cannot write {images}: {problem.strerror}"
        ) from problem
    for path, source in (*copies, (evaluation, sources.evaluation)):
        write_bytes(path, source.read_bytes())
    with np.load(sources.calibration) as data:
        pixels = np.uint8(np.rint(data["images"][:, 0] * 255))
    for number, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        write_bytes(images / f"{number:03}.png", buffer.getvalue())
    return written
