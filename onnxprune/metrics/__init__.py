"""What a model is worth: metrics against labels, fidelity to the original without them, and two models side by side.

Metrics are here; `data` reads labeled samples, `run` evaluates a model on them, `fidelity` measures two models on the same inputs without labels,
`compare` two models on the same labels.
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
            "intersection over union of a class's pixels, mean over the classes that occur",
        ),
        "pixel_acc": (
            "onnxprune.metrics.segmentation:pixel_acc",
            "share of labeled pixels with the right class",
        ),
        "psnr": (
            "onnxprune.metrics.restoration:psnr",
            "peak signal to noise ratio in dB, mean over images",
        ),
        "psnr_y": (
            "onnxprune.metrics.restoration:psnr_y",
            "psnr of the luma (BT.601), as super-resolution papers give it",
        ),
        "coco": (
            "onnxprune.metrics.detection:coco",
            "box mAP: 101-point average precision, IoU 0.50 to 0.95, mean over the classes that occur",
        ),
        "map50": ("onnxprune.metrics.detection:map50", "box mAP at IoU 0.50"),
        "coco-official": (
            "onnxprune.metrics.pycoco:official",
            "box mAP by pycocotools (extra coco), without spread",
        ),
    },
)


def find_metric(name: str, options: MetricOptions = NO_OPTIONS) -> Metric:
    """An empty metric of that name.

    Parameters
    ----------
    name
        A name in METRICS, or `module:function` or `FILE.py:function` of your own. A class (or a function of one argument that returns a Metric) is called with `options`;
        a function of two, `(outputs, labels) -> values`, gives one number a sample, and the metric is their mean (higher is better
        unless the function has `higher_is_better = False`).

    Raises
    ------
    UsageError
        Unknown name, or nothing of that name in the module.
    """
    if ":" not in name:
        made: Metric = METRICS.get(name)(options)
        return made
    from onnxprune.metrics.user import user_metric

    return user_metric(name, find_function(name, "metric"), options)


__all__ = ["METRICS", "Metric", "MetricOptions", "Options", "Score", "find_metric"]
