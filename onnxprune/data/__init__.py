"""Calibration and labeled inputs for a model.

A data source is a function `(location: str, inputs: Inputs, samples: int, seed: int) -> Source`;
`location` is the part after `NAME:` in the specification. See `onnxprune.data.sources` for the
protocol.
"""

from __future__ import annotations

from onnxprune.registry import Registry

DATA_SOURCES = Registry(
    "data source",
    "onnxprune.data_sources",
    {
        "images": (
            "onnxprune.data.images:open_images",
            "a folder of images, subfolders included; resize, crop, mean, std, scale, layout, "
            "color order",
        ),
        "arrays": (
            "onnxprune.data.arrays:open_arrays",
            ".npz or .npy by input name, or a folder of them; read sample by sample",
        ),
        "loader": (
            "onnxprune.data.loader:open_loader",
            "FILE.py:FUNCTION that yields feeds (dicts by input name)",
        ),
        "synthetic": (
            "onnxprune.data.synthetic:open_synthetic",
            "seeded random inputs; for structure and speed, not for accuracy",
        ),
    },
)

__all__ = ["DATA_SOURCES"]
