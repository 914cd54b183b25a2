"""What every metric has in common: options, scores, the streaming protocol, and the spread of a result.

A metric keeps small per-sample figures, not outputs, and can be estimated again under other sample weights. From that follow the standard
error of any metric and the spread of the difference of two models on the same samples, by one bootstrap.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from onnxprune.errors import DataError, UsageError

Labels = Mapping[str, np.ndarray]
Outputs = Mapping[str, np.ndarray]
# (outputs, labels) -> for each sample of the batch float (boxes, 6): x1, y1, x2, y2 as fractions of the image, score, class
Decoder = Callable[[Outputs, Labels], Sequence[np.ndarray]]

SEED = 0


@dataclass(frozen=True)
class MetricOptions:
    """How labels and outputs belong together; what a metric does not need it ignores.

    output: name of the output to score (None: the only one); labels: name of the label array (None: the metric's own, such as "masks");
    class_offset: outputs before class 0 (1 where output 0 is a background class);
    classes: number of classes (None: as many as there are outputs); ignore: label value that is not scored, beside those out of range;
    decoder: detections from raw outputs, as a function or `module:function` (None: the model's own boxes, scores and classes);
    crop: pixels left out at each border; peak: output value of full brightness;
    curve: "coco" for precision as pycocotools interpolates it, "anchored" for curves that begin at (recall 0, precision 1),
    as many detector trainers draw them (at most 0.01 higher a class).
    """

    output: str | None = None
    labels: str | None = None
    class_offset: int = 0
    classes: int | None = None
    ignore: int | None = None
    decoder: str | Decoder | None = None
    crop: int = 0
    peak: float = 1.0
    curve: str = "coco"


NO_OPTIONS = MetricOptions()


@dataclass(frozen=True)
class MetricEstimate:
    """A value, the value of each class that occurs, how many samples (or boxes, or pixels) of each, and related figures."""

    value: float
    per_class: Mapping[int, float] = field(default_factory=dict)
    counts: Mapping[int, float] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What a metric measured.

    value: the metric; n: samples; standard_error: of the value over samples, None where it cannot be told;
    per_class: class index -> value; counts: class index -> how many of it; details: related figures by name (map50, recall...).
    """

    name: str
    value: float
    n: int
    standard_error: float | None
    higher_is_better: bool
    per_class: Mapping[int, float] = field(default_factory=dict)
    counts: Mapping[int, float] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, None for what is not finite; class indices become strings there."""
        return {
            "metric": self.name,
            **{key: plain(value) for key, value in vars(self).items() if key != "name"},
        }


@runtime_checkable
class Metric(Protocol):
    """A streaming metric: `update` with each batch, then `result`.

    draws: bootstrap draws worth their time for this metric.
    """

    name: str
    higher_is_better: bool
    draws: int

    @property
    def n(self) -> int:
        """Samples seen."""

    def update(self, outputs: Outputs, labels: Labels) -> None:
        """Take one batch: outputs by name and labels by name, the batch first."""

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate | None:
        """The metric where sample i counts `weights[i]` times (float64 (n,)), over the chosen classes; None where it cannot be reweighted."""

    def outcomes(self) -> np.ndarray | None:
        """Float64 (n,): the value of each sample where the metric is their mean, else None."""

    def result(self) -> Score:
        """The metric with its standard error. DataError where no sample was seen."""


class BaseMetric:
    """What the built-in metrics share; a subclass has name, n, update and estimate."""

    name = ""
    higher_is_better = True
    draws = 400

    def __init__(self, options: MetricOptions) -> None:
        self.options = options

    @property
    def n(self) -> int:
        raise NotImplementedError

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate | None:
        raise NotImplementedError

    def outcomes(self) -> np.ndarray | None:
        return None

    def result(self) -> Score:
        if not self.n:
            raise DataError("data-empty", f"{self.name}: no labeled sample was seen")
        found = self.estimate()
        assert found is not None
        return Score(
            self.name,
            found.value,
            self.n,
            self._error(),
            self.higher_is_better,
            found.per_class,
            found.counts,
            found.details,
        )

    def _error(self) -> float | None:
        values = self.outcomes()
        if values is not None:
            return standard_error(values)
        drawn = resample([self], self.draws, np.random.default_rng(SEED))
        return None if drawn is None else spread([e[0].value for e in drawn])


class MeanMetric(BaseMetric):
    """A metric that is the mean of one value a sample, for each class by the sample's label."""

    def __init__(self, options: MetricOptions) -> None:
        super().__init__(options)
        self._values: list[np.ndarray] = []
        self._classes: list[np.ndarray] = []

    @property
    def n(self) -> int:
        return sum(len(v) for v in self._values)

    def add(self, values: np.ndarray, classes: np.ndarray | None = None) -> None:
        """Values of one batch, float (batch,), and the class of each sample where there is one."""
        self._values.append(np.asarray(values, np.float64))
        self._classes.append(
            np.full(len(values), -1) if classes is None else np.asarray(classes, np.int64)
        )

    def outcomes(self) -> np.ndarray:
        return np.concatenate(self._values) if self._values else np.zeros(0)

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate:
        values, labels = self.outcomes(), np.concatenate(self._classes)
        weights = np.ones(len(values)) if weights is None else weights
        if classes is not None:
            weights = np.where(np.isin(labels, np.asarray(classes)), weights, 0)
        known = labels >= 0
        counts = np.bincount(labels[known], weights[known])
        sums = np.bincount(labels[known], (weights * values)[known])
        per_class = {int(c): float(sums[c] / counts[c]) for c in np.flatnonzero(counts)}
        total = weights.sum()
        value = float((weights * values).sum() / total) if total else math.nan
        return MetricEstimate(value, per_class, {c: float(counts[c]) for c in per_class})


# names of earlier releases, which plug-ins may import
Options, Estimate, Base = MetricOptions, MetricEstimate, BaseMetric


def plain(value: Any) -> Any:
    """Plain JSON of nested dicts, lists and numbers; None for what is not finite, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def resample(
    metrics: Sequence[Metric | BaseMetric],
    draws: int,
    rng: np.random.Generator,
    classes: Sequence[int] | None = None,
) -> list[list[MetricEstimate]] | None:
    """Bootstrap over samples: for each draw the estimates of all metrics under the same weights (Efron 1979).

    None where there are fewer than two samples or a metric cannot be reweighted.
    """
    n = metrics[0].n
    if n < 2:
        return None
    drawn = []
    for _ in range(draws):
        weights = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        row = [m.estimate(weights, classes) for m in metrics]
        if any(e is None for e in row):
            return None
        drawn.append([e for e in row if e is not None])
    return drawn


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean: sample deviation (n - 1) / sqrt(n). None for fewer than two values or values that are not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of bootstrap values; draws in which nothing could be measured are left out."""
    finite = np.asarray([v for v in values if math.isfinite(v)])
    return float(np.std(finite, ddof=1)) if len(finite) > 1 else None


def find_function(where: str, purpose: str) -> Any:
    """What `module:attribute` or `FILE.py:attribute` names; modules are also looked for in the current folder.

    Runs the user's code: only for names that the user gave.

    Raises
    ------
    UsageError
        Not of that form, no such module, nothing of that name in it, or the module fails to import.
    """
    module, _, attribute = where.rpartition(":")
    if not module or not attribute:
        raise UsageError(
            "function-name",
            f"{purpose} {where!r} is not of the form module:function or FILE.py:function",
        )
    folder = str(Path(module).resolve().parent) if module.endswith(".py") else os.getcwd()
    sys.path.insert(0, folder)
    try:
        found = (
            _file_module(Path(module))
            if module.endswith(".py")
            else importlib.import_module(module)
        )
    except Exception as problem:
        raise UsageError(
            "function-import",
            f"{purpose} {where!r}: cannot import {module!r}: {type(problem).__name__}: {problem}",
        ) from problem
    finally:
        sys.path.remove(folder)
    if not hasattr(found, attribute):
        raise UsageError(
            "function-missing", f"{purpose} {where!r}: {module!r} has no {attribute!r}"
        )
    return getattr(found, attribute)


def _file_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"onnxprune_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pick_output(outputs: Outputs, options: MetricOptions, metric: str) -> np.ndarray:
    """The output to score; UsageError where there are several and none was named."""
    if options.output is not None:
        if options.output not in outputs:
            raise UsageError(
                "metric-output",
                f"{metric}: no output {options.output!r}; there are {', '.join(sorted(outputs))}",
            )
        return np.asarray(outputs[options.output])
    if len(outputs) != 1:
        raise UsageError(
            "metric-output",
            f"{metric}: the model has {len(outputs)} outputs ({', '.join(sorted(outputs))}); say which one",
        )
    return np.asarray(next(iter(outputs.values())))


def pick_labels(labels: Labels, options: MetricOptions, usual: str, metric: str) -> np.ndarray:
    """The label array of the metric; DataError where the data have none of that name."""
    name = options.labels or usual
    if name not in labels:
        raise DataError(
            "data-labels",
            f"{metric} needs labels {name!r}; the data have {', '.join(sorted(labels)) or 'none'}",
        )
    return np.asarray(labels[name])
