"""Validation of a module on held-out samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from onnxprune.tune.bridge import OnnxModule
from onnxprune.tune.call import torch
from onnxprune.tune.losses import Head, accuracy
from onnxprune.tune.samples import Samples
from onnxprune.tune.settings import TuneSettings

Forward = Callable[
    [Mapping[str, np.ndarray], Mapping[str, np.ndarray]], tuple[Any, Mapping[str, Any]]
]


class Validator:
    """Scores a module on the same samples every time.

    The score is that of `metric` (negated if lower is better), else accuracy if there are labels
    and classes, else minus the loss.

    Parameters
    ----------
    samples
        Held-out samples.
    settings
        Batch size and class offset.
    heads
        Outputs as the losses read them.
    metric
        Factory of a metric, or None.
    forward
        (inputs, labels) of a batch -> (loss, outputs and logits by name) of the module.
    """

    def __init__(
        self,
        samples: Samples,
        settings: TuneSettings,
        heads: list[Head],
        metric: Callable[[], Any] | None,
        forward: Forward,
    ) -> None:
        self.samples = samples
        self.settings = settings
        self.heads = heads
        self.metric = metric
        self.forward = forward

    def score(self, module: OnnxModule) -> tuple[float, float, float]:
        """Score the module on all samples.

        Returns
        -------
        score : float
            Higher is better.
        loss : float
            Mean loss.
        standard_error : float
            Of the score; 0 if it is unknown.
        """
        module.eval()
        total, hits, labeled = 0.0, 0.0, 0
        metric = self.metric() if self.metric is not None else None
        for batch in self._iterate_batches():
            with torch.no_grad():
                loss, tensors = self.forward(batch.inputs, batch.labels)
            # the last batch may be shorter
            total += float(loss) * len(batch)
            outputs = {n: v.cpu().numpy() for n, v in tensors.items()}
            if metric is not None:
                metric.update({h.output: outputs[h.output] for h in self.heads}, batch.labels)
                continue
            offset = self.settings.class_offset
            share = accuracy(outputs, batch.labels, self.heads[0], offset)
            if share is not None:
                hits, labeled = hits + share * len(batch), labeled + len(batch)
        mean_loss = total / len(self.samples)
        # metrics of the caller need not have a standard error
        if metric is not None:
            result = metric.result()
            value = result.value if result.higher_is_better else -result.value
            return value, mean_loss, getattr(result, "standard_error", None) or 0.0
        share = hits / labeled if labeled else 0.0
        # of a share of independent samples
        standard_error = math.sqrt(share * (1 - share) / max(labeled, 1))
        return (share if labeled else -mean_loss), mean_loss, standard_error

    def _iterate_batches(self) -> Iterator[Samples]:
        """Yield the samples in order."""
        size = self.settings.batch_size
        for begin in range(0, len(self.samples), size):
            yield self.samples.take(np.arange(begin, min(begin + size, len(self.samples))))
