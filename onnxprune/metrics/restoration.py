"""Peak signal-to-noise ratio of images."""

from __future__ import annotations

import math

import numpy as np

from onnxprune.errors import DataError
from onnxprune.metrics.base import (
    Labels,
    MeanMetric,
    MetricOptions,
    Outputs,
    pick_labels,
    pick_output,
)

# ITU-R BT.601 luma of 8-bit RGB, 16 .. 235
LUMA = np.array([65.481, 128.553, 24.966]) / 255
LUMA_OFFSET = 16.0
PEAK_8BIT = 255.0


class Psnr(MeanMetric):
    """10 log10(peak^2 / mean squared error) in dB, mean over images.

    Outputs are (n, C, H, W) with full brightness at `options.peak`. Labels: `targets`, either uint8
    (n, H, W, C), for which outputs are clipped and rounded to 8 bits as in an image file, or float
    (n, C, H, W) in the units of the outputs. `options.crop` pixels are left out at each border. An
    exact image counts as infinite.
    """

    def __init__(self, luma: bool, options: MetricOptions) -> None:
        super().__init__(options)
        self.luma = luma
        self.name = "psnr_y" if luma else "psnr"

    def update(self, outputs: Outputs, labels: Labels) -> None:
        """Add one batch of outputs and `targets`."""
        output = pick_output(outputs, self.options, self.name)
        targets = pick_labels(labels, self.options, "targets", self.name)
        if output.ndim != 4 or targets.ndim != 4 or len(output) != len(targets):
            raise DataError(
                "metric-shape",
                f"{self.name}: output {output.shape} and targets {targets.shape} must be equally "
                "many images, with 4 axes",
            )
        # channels last, as in image files
        images = output.transpose(0, 2, 3, 1)
        values = [self._value(o, t) for o, t in zip(images, targets, strict=True)]
        self.add(np.array(values))

    def _value(self, image: np.ndarray, target: np.ndarray) -> float:
        """Return the PSNR of one image, (H, W, C), against a target as in the class docstring."""
        peak = self.options.peak
        if target.dtype == np.uint8:
            # in float32, as the comparison is with what an image file would hold
            image = np.round(np.clip(image / np.float32(peak), 0, 1) * 255)
            peak = PEAK_8BIT
        else:
            target = target.transpose(1, 2, 0)
            if self.luma:  # defined for 8-bit values
                image, target = image * (255 / peak), target * (255 / peak)
                peak = PEAK_8BIT
        if image.shape != target.shape:
            raise DataError(
                "metric-shape",
                f"{self.name}: an output image of {image.shape} for a target of {target.shape} "
                "(height, width, channels); they must be equal",
            )
        if self.luma:
            image, target = _luma(image), _luma(target)
        return psnr_of(image, target, peak, self.options.crop)


def psnr_of(image: np.ndarray, target: np.ndarray, peak: float, crop: int = 0) -> float:
    """Return the PSNR of two arrays (H, W, ...) of one shape in dB; inf if they are equal."""
    inner = np.s_[crop : image.shape[0] - crop, crop : image.shape[1] - crop]
    difference = image[inner].astype(np.float64) - target[inner].astype(np.float64)
    error = float(np.mean(difference**2))
    return 10 * math.log10(peak**2 / error) if error else math.inf


def _luma(image: np.ndarray) -> np.ndarray:
    """Return the luma (H, W) of 8-bit RGB (H, W, 3); a single channel is taken as luma."""
    image = image.astype(np.float64)
    return image[..., 0] if image.shape[-1] == 1 else LUMA_OFFSET + image @ LUMA


def psnr(options: MetricOptions) -> Psnr:
    """Return PSNR over all channels."""
    return Psnr(False, options)


def psnr_y(options: MetricOptions) -> Psnr:
    """Return PSNR of the luma."""
    return Psnr(True, options)
