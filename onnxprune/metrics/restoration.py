"""Peak signal to noise ratio of images."""

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

    Outputs (n, C, H, W), full brightness at `options.peak`. Labels: `targets`, either uint8 (n, H, W, C), where outputs are clipped and rounded to
    8 bits first as an image file would hold them, or float (n, C, H, W) in the units of the outputs. `options.crop` pixels are left out at each border.
    An exact image counts as infinite.
    """

    def __init__(self, luma: bool, options: MetricOptions) -> None:
        super().__init__(options)
        self.luma = luma
        self.name = "psnr_y" if luma else "psnr"

    def update(self, outputs: Outputs, labels: Labels) -> None:
        """Outputs of one batch and `targets`."""
        output = pick_output(outputs, self.options, self.name)
        targets = pick_labels(labels, self.options, "targets", self.name)
        if output.ndim != 4 or targets.ndim != 4 or len(output) != len(targets):
            raise DataError(
                "metric-shape",
                f"{self.name}: output {output.shape} and targets {targets.shape} are not batches of images",
            )
        self.add(
            np.array(
                [
                    self._value(o, t)
                    for o, t in zip(output.transpose(0, 2, 3, 1), targets, strict=False)
                ]
            )
        )

    def _value(self, output: np.ndarray, target: np.ndarray) -> float:
        """Of one image, channels last."""
        if target.dtype == np.uint8:
            peak, ours, truth = (
                PEAK_8BIT,
                np.round(np.clip(output / np.float32(self.options.peak), 0, 1) * 255),
                target,
            )
        else:
            peak, ours, truth = self.options.peak, output, target.transpose(1, 2, 0)
            if self.luma:
                peak, ours, truth = (
                    PEAK_8BIT,
                    ours * (255 / self.options.peak),
                    truth * (255 / self.options.peak),
                )
        if ours.shape != truth.shape:
            raise DataError(
                "metric-shape",
                f"{self.name}: an output image of {ours.shape} for a target of {truth.shape} (height, width, channels)",
            )
        return psnr_of(
            _luma(ours) if self.luma else ours,
            _luma(truth) if self.luma else truth,
            peak,
            self.options.crop,
        )


def psnr_of(image: np.ndarray, target: np.ndarray, peak: float, crop: int = 0) -> float:
    """DB between two arrays (H, W, ...) of one shape; inf where they are equal."""
    inner = np.s_[crop : image.shape[0] - crop, crop : image.shape[1] - crop]
    error = float(
        np.mean((image[inner].astype(np.float64) - target[inner].astype(np.float64)) ** 2)
    )
    return 10 * math.log10(peak**2 / error) if error else math.inf


def _luma(image: np.ndarray) -> np.ndarray:
    """(H, W) from 8-bit RGB (H, W, 3); one channel is luma already."""
    image = image.astype(np.float64)
    return image[..., 0] if image.shape[-1] == 1 else LUMA_OFFSET + image @ LUMA


def psnr(options: MetricOptions) -> Psnr:
    """PSNR over all channels."""
    return Psnr(False, options)


def psnr_y(options: MetricOptions) -> Psnr:
    """PSNR of the luma."""
    return Psnr(True, options)
