"""Quality metrics: against labels, against the original without labels, and of two models.

This module finds metrics by name. `run` evaluates a model on labeled data, `fidelity` compares the
outputs of two models on the same inputs without labels, `compare` two models on the same labels.
"""

from __future__ import annotations

from onnxprune.metrics.base import (
    NO_OPTIONS,
    Metric,
    MetricOptions,
    Options,
    Score,
    find_function,
)
from onnxprune.named import Named
from onnxprune.registry import Registry

METRICS = Registry(
    "metric",
    "onnxprune.metrics",
    {
        "top1": (
            "onnxprune.metrics.classification:top1",
            "share of samples whose largest output is the label",
        ),
        "top5": (
            "onnxprune.metrics.classification:top5",
            "share of samples whose label is among the five largest outputs",
        ),
        "miou": (
            "onnxprune.metrics.segmentation:miou",
            "intersection over union of the pixels of a class, mean over the classes present",
        ),
        "pixel_acc": (
            "onnxprune.metrics.segmentation:pixel_acc",
            "share of labeled pixels with the correct class",
        ),
        "psnr": (
            "onnxprune.metrics.restoration:psnr",
            "peak signal-to-noise ratio in dB, mean over images",
        ),
        "psnr_y": (
            "onnxprune.metrics.restoration:psnr_y",
            "psnr of the luma (BT.601), as in super-resolution papers",
        ),
        "coco": (
            "onnxprune.metrics.detection:coco",
            "box mAP: 101-point average precision at IoU 0.50 to 0.95, mean over classes present",
        ),
        "map50": ("onnxprune.metrics.detection:map50", "box mAP at IoU 0.50"),
        "coco-official": (
            "onnxprune.metrics.pycoco:official",
            "box mAP by pycocotools (extra coco), without a standard error",
        ),
    },
)


def find_metric(name: str, options: MetricOptions = NO_OPTIONS) -> Metric:
    """Return an empty metric.

    Parameters
    ----------
    name
        A name in METRICS, or `module:function` or `FILE.py:function` of the user. A class, or a
        function of one argument that returns a Metric, is called with `options`. A function of two
        arguments, `(outputs, labels) -> values`, returns one number per sample; the metric is their
        mean, and higher is better unless the function has `higher_is_better = False`.

    Raises
    ------
    UsageError
        The name is unknown, or the module has nothing of that name.
    """
    if ":" not in name and not isinstance(name, Named):
        metric: Metric = METRICS.get(name)(options)
        return metric
    from onnxprune.metrics.user import user_metric

    return user_metric(name, find_function(name, "metric"), options)


__all__ = ["METRICS", "Metric", "MetricOptions", "Options", "Score", "find_metric"]
