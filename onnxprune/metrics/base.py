"""Options, scores, the streaming protocol of metrics, and their standard errors.

A metric stores a few figures per sample instead of outputs and can be estimated again under other
sample weights. The bootstrap over those weights gives the standard error of any metric, and of the
difference of two models on the same samples.
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
from onnxprune.named import Named

Labels = Mapping[str, np.ndarray]
Outputs = Mapping[str, np.ndarray]
# (outputs, labels) -> per sample of the batch float (boxes, 6): x1, y1, x2, y2 as fractions of the
# image, score, class
Decoder = Callable[[Outputs, Labels], Sequence[np.ndarray]]

SEED = 0


@dataclass(frozen=True)
class MetricOptions:
    """How outputs and labels correspond; each metric uses the options that it needs.

    Attributes
    ----------
    output
        Name of the output to score; None = the only one.
    labels
        Name of the label array; None = the metric's default, such as "masks".
    class_offset
        Number of outputs before class 0; 1 if output 0 is a background class.
    classes
        Number of classes; None = as many as there are outputs.
    ignore
        Label value that is not scored, besides those out of range.
    decoder
        Detections from raw outputs, as a function or `module:function`; None = the outputs are
        boxes, scores and classes.
    crop
        Pixels left out at each border.
    peak
        Output value of full brightness.
    curve
        "coco" for precision interpolated as by pycocotools, "anchored" for curves that start at
        recall 0 and precision 1, as many detector trainers draw them (at most 0.01 higher per
        class).
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
    """A value of a metric under given sample weights.

    Attributes
    ----------
    value
        The metric.
    per_class
        Class index -> value, for the classes present.
    counts
        Class index -> number of samples, boxes or pixels.
    details
        Related figures by name (map50, recall, ...).
    """

    value: float
    per_class: Mapping[int, float] = field(default_factory=dict)
    counts: Mapping[int, float] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """Result of a metric.

    Attributes
    ----------
    name
        Name of the metric.
    value
        The metric over all samples.
    n
        Number of samples.
    standard_error
        Standard error of the value over samples; None if it cannot be estimated.
    higher_is_better
        Direction of the metric.
    per_class, counts, details
        As in MetricEstimate.
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
        """Return plain JSON: None for values that are not finite, class indices as strings."""
        return {
            "metric": self.name,
            **{key: plain(value) for key, value in vars(self).items() if key != "name"},
        }


@runtime_checkable
class Metric(Protocol):
    """A streaming metric: `update` with each batch, then `result`.

    Attributes
    ----------
    name
        Name of the metric.
    higher_is_better
        Direction of the metric.
    draws
        Number of bootstrap draws that is worth its time for this metric.
    """

    name: str
    higher_is_better: bool
    draws: int

    @property
    def n(self) -> int:
        """Return the number of samples seen."""

    def update(self, outputs: Outputs, labels: Labels) -> None:
        """Add one batch of outputs and labels by name, with the batch as first axis."""

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate | None:
        """Return the metric over the chosen classes with sample weights.

        Parameters
        ----------
        weights
            How often each sample counts, float64 (n,); None = once.
        classes
            Class indices; None = all.

        Returns
        -------
        MetricEstimate or None
            None if the metric cannot be reweighted.
        """

    def outcomes(self) -> np.ndarray | None:
        """Return the value of each sample, float64 (n,), if the metric is their mean, else None."""

    def result(self) -> Score:
        """Return the metric with its standard error; DataError if no sample was seen."""


class BaseMetric:
    """Common parts of the built-in metrics; a subclass has name, n, update and estimate."""

    name = ""
    higher_is_better = True
    # the bootstrap's own relative error is 1 / sqrt(2 draws), 4 percent here
    draws = 400

    def __init__(self, options: MetricOptions) -> None:
        self.options = options

    @property
    def n(self) -> int:
        """Return the number of samples seen."""
        raise NotImplementedError

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate | None:
        """Return the metric over the chosen classes with sample weights."""
        raise NotImplementedError

    def outcomes(self) -> np.ndarray | None:
        """Return None: the metric is no mean over samples."""
        return None

    def result(self) -> Score:
        """Return the metric with its standard error; DataError if no sample was seen."""
        if not self.n:
            raise DataError("data-empty", f"{self.name}: no labeled sample was seen")
        estimate = self.estimate()
        assert estimate is not None  # only weights can prevent an estimate
        return Score(
            self.name,
            estimate.value,
            self.n,
            self._estimate_standard_error(),
            self.higher_is_better,
            estimate.per_class,
            estimate.counts,
            estimate.details,
        )

    def _estimate_standard_error(self) -> float | None:
        """Return the exact standard error of a mean, else that of the bootstrap."""
        values = self.outcomes()
        if values is not None:
            return share_error(values)
        # a fixed seed, so that reports of the same samples agree
        drawn = resample([self], self.draws, np.random.default_rng(SEED))
        return None if drawn is None else bootstrap_error([e[0].value for e in drawn])


class MeanMetric(BaseMetric):
    """A metric that is the mean of one value per sample; per class by the sample's label."""

    def __init__(self, options: MetricOptions) -> None:
        super().__init__(options)
        self._values: list[np.ndarray] = []
        self._classes: list[np.ndarray] = []

    @property
    def n(self) -> int:
        """Return the number of samples seen."""
        return sum(len(v) for v in self._values)

    def add(self, values: np.ndarray, classes: np.ndarray | None = None) -> None:
        """Add the values of one batch, float (batch,), and the class of each sample if known."""
        self._values.append(np.asarray(values, np.float64))
        self._classes.append(
            np.full(len(values), -1) if classes is None else np.asarray(classes, np.int64)
        )

    def outcomes(self) -> np.ndarray:
        """Return the value of each sample, float64 (n,)."""
        return np.concatenate(self._values) if self._values else np.zeros(0)

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate:
        """Return the mean over the chosen classes with sample weights."""
        values, labels = self.outcomes(), np.concatenate(self._classes)
        weights = np.ones(len(values)) if weights is None else weights
        if classes is not None:
            weights = np.where(np.isin(labels, np.asarray(classes)), weights, 0)
        known = labels >= 0  # -1 is a sample without a class
        counts = np.bincount(labels[known], weights[known])
        sums = np.bincount(labels[known], (weights * values)[known])
        per_class = {int(c): float(sums[c] / counts[c]) for c in np.flatnonzero(counts)}
        total = weights.sum()
        # a draw may miss the chosen classes
        value = float((weights * values).sum() / total) if total else math.nan
        return MetricEstimate(value, per_class, {c: float(counts[c]) for c in per_class})


# names of earlier releases, which plug-ins may import
Options, Estimate, Base = MetricOptions, MetricEstimate, BaseMetric


def plain(value: Any) -> Any:
    """Return nested dicts, lists and numbers as plain JSON; numbers that are not finite as None."""
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
    """Return estimates of all metrics under the same weights, per bootstrap draw (Efron 1979).

    None for fewer than two samples, or if a metric cannot be reweighted.
    """
    n = metrics[0].n
    if n < 2:
        return None
    drawn = []
    for _ in range(draws):
        # how often each of n samples is drawn, with replacement
        weights = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        row = [m.estimate(weights, classes) for m in metrics]
        if any(e is None for e in row):
            return None
        # the filter is for the type checker: no estimate is None here
        drawn.append([e for e in row if e is not None])
    return drawn


def standard_error(values: np.ndarray) -> float | None:
    """Return the standard error of the mean: sample standard deviation (n - 1) / sqrt(n).

    None for fewer than two values, or values that are not finite.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def share_error(right: np.ndarray) -> float | None:
    """Return the standard error of a share of answers, 0 or 1 each; of other values, of the mean.

    If all answers are equal, the spread is 0 although further ones may differ: then it is the
    distance to the other end of Wilson's interval (1927) at one standard error.

    >>> share_error(np.ones(49))
    0.02
    """
    if len(right) < 2 or not (right == right[0]).all() or right[0] not in (0, 1):
        return standard_error(right)
    return 1 / (len(right) + 1)


def bootstrap_error(values: Sequence[float]) -> float | None:
    """Return the standard deviation over bootstrap draws; values that are not finite are left out.

    None for fewer than two finite values.
    """
    # a draw may miss all samples of a class
    finite = np.asarray([v for v in values if math.isfinite(v)])
    return float(np.std(finite, ddof=1)) if len(finite) > 1 else None


def find_function(where: str, purpose: str) -> Any:
    """Return the object that `module:attribute` or `FILE.py:attribute` names, or a Named holds.

    Modules are also looked up in the current folder. This runs the user's code: call it for names
    that the user gave, never for names from a file of unknown origin.

    Parameters
    ----------
    purpose
        What the object is for, such as "metric"; starts the error message.

    Raises
    ------
    UsageError
        The name has another form, the module does not exist or fails to import, or it has no such
        attribute.
    """
    if isinstance(where, Named):
        return where.value
    module, _, attribute = where.rpartition(":")
    if not module or not attribute:
        raise UsageError(
            "function-name",
            f"{purpose} {where!r} is not of the form module:function or FILE.py:function",
        )
    is_file = module.endswith(".py")
    if is_file and not Path(module).is_file():
        raise UsageError("function-import", f"{purpose} {where!r}: no file {module!r}")
    # a file can import from its own folder, as when Python runs it
    folder = str(Path(module).resolve().parent) if is_file else os.getcwd()
    sys.path.insert(0, folder)
    try:
        loaded = _import_file(Path(module)) if is_file else importlib.import_module(module)
    except Exception as problem:
        raise UsageError(
            "function-import",
            f"{purpose} {where!r}: cannot import {module!r}: {type(problem).__name__}: {problem}",
        ) from problem
    finally:
        sys.path.remove(folder)
    if not hasattr(loaded, attribute):
        raise UsageError(
            "function-missing", f"{purpose} {where!r}: {module!r} has no {attribute!r}"
        )
    return getattr(loaded, attribute)


def _import_file(path: Path) -> ModuleType:
    """Import a Python file that is not on the search path."""
    spec = importlib.util.spec_from_file_location(f"onnxprune_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pick_output(outputs: Outputs, options: MetricOptions, metric: str) -> np.ndarray:
    """Return the output to score; UsageError if there are several and none is named."""
    names = ", ".join(sorted(outputs))
    if options.output is not None:
        if options.output not in outputs:
            raise UsageError(
                "metric-output",
                f"{metric}: the model has no output {options.output!r}; its outputs are {names}",
            )
        return np.asarray(outputs[options.output])
    if len(outputs) != 1:
        raise UsageError(
            "metric-output",
            f"{metric}: the model has {len(outputs)} outputs ({names}); use a metric of your own "
            "as FILE.py:function, or set MetricOptions.output in Python",
        )
    return np.asarray(next(iter(outputs.values())))


def pick_labels(labels: Labels, options: MetricOptions, default: str, metric: str) -> np.ndarray:
    """Return the label array of the metric; DataError if the data have none of that name."""
    name = options.labels or default
    if name not in labels:
        raise DataError(
            "data-labels",
            f"{metric} needs labels {name!r}; the data have {', '.join(sorted(labels)) or 'none'}",
        )
    return np.asarray(labels[name])
