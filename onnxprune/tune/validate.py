"""Scoring a module on held-out samples, so that the best of a run can be kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from onnxprune.tune.bridge import OnnxModule
from onnxprune.tune.call import torch
from onnxprune.tune.losses import Head, accuracy
from onnxprune.tune.samples import Samples
from onnxprune.tune.settings import Settings

Forward = Callable[
    [Mapping[str, np.ndarray], Mapping[str, np.ndarray]], tuple[Any, Mapping[str, Any]]
]


class Validator:
    """Scores on the same samples every time.

    The score is that of `metric` (its sign turned where lower is better), else accuracy where there are labels and classes, else minus the loss.
    forward: (inputs, labels) of a batch -> (loss, outputs and logits by name) of the module that is scored.
    """

    def __init__(
        self,
        samples: Samples,
        settings: Settings,
        heads: list[Head],
        metric: Callable[[], Any] | None,
        forward: Forward,
    ) -> None:
        self.samples, self.settings, self.heads, self.metric, self.forward = (
            samples,
            settings,
            heads,
            metric,
            forward,
        )

    def score(self, module: OnnxModule) -> tuple[float, float, float]:
        """(score, higher is better; mean loss; standard error of the score, 0 where it is not known)."""
        module.eval()
        total, hits, judged = 0.0, 0.0, 0
        metric = self.metric() if self.metric is not None else None
        for batch in self._batches():
            with torch.no_grad():
                loss, tensors = self.forward(batch.inputs, batch.labels)
            total += float(loss) * len(batch)
            outputs = {n: v.cpu().numpy() for n, v in tensors.items()}
            if metric is not None:
                metric.update({h.output: outputs[h.output] for h in self.heads}, batch.labels)
            elif (
                share := accuracy(outputs, batch.labels, self.heads[0], self.settings.class_offset)
            ) is not None:
                hits, judged = hits + share * len(batch), judged + len(batch)
        mean = total / len(self.samples)
        if metric is not None:
            result = metric.result()
            return (
                (result.value if result.higher_is_better else -result.value),
                mean,
                getattr(result, "standard_error", None) or 0.0,
            )
        share = hits / judged if judged else 0.0
        return (share if judged else -mean), mean, math.sqrt(share * (1 - share) / max(judged, 1))

    def _batches(self) -> Iterator[Samples]:
        size = self.settings.batch_size
        for begin in range(0, len(self.samples), size):
            yield self.samples.take(np.arange(begin, min(begin + size, len(self.samples))))
