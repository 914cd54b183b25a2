"""Named preprocessings of images: what common training pipelines feed their networks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

LETTERBOX = "letterbox"  # value of --resize: keeps the aspect ratio and pads, see data/image_fit.py
PRESET = "preprocess"  # option that names one
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB, pixels of 0..1
_MEAN_255, _STD_255 = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # pixels of 0..255
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # Radford 2021
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _numbers(scale: float, mean: Any = (0.0,), std: Any = (1.0,)) -> Mapping[str, Any]:
    """Return the options of one preset; all presets set the same ones."""
    values = {"scale": scale, "mean": mean, "std": std, "post": 1.0, "layout": "auto"}
    return MappingProxyType(values)


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "imagenet": _numbers(1 / 255, _MEAN, _STD),
        "imagenet-255": _numbers(1.0, _MEAN_255, _STD_255),
        "unit": _numbers(1 / 255),
        "minus-one-one": _numbers(1 / 127.5, (1.0,)),
        "yolo": _numbers(1 / 255),
        "clip": _numbers(1 / 255, _CLIP_MEAN, _CLIP_STD),
        "none": _numbers(1.0),
    }
)
# further options of presets, which say nothing about the values of pixels
_FURTHER: Mapping[str, Mapping[str, Any]] = {"yolo": {"resize": LETTERBOX}}


def expand_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with those that their preset stands for; given ones win.

    An unknown preset is left to the option's parser.
    """
    name = str(values.get(PRESET))
    return {**PRESETS.get(name, {}), **_FURTHER.get(name, {}), **values}
