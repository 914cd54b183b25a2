"""Comparison of two models on the same labeled samples, per class, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.data.labeled import LabeledData
from onnxprune.errors import UsageError, plural, printable
from onnxprune.ir.example_sizes import declared_shapes
from onnxprune.ir.io import Model
from onnxprune.ir.values import Dim
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import (
    NO_OPTIONS,
    SEED,
    Metric,
    MetricEstimate,
    MetricOptions,
    Score,
    bootstrap_error,
    plain,
    resample,
    share_error,
    standard_error,
)
from onnxprune.metrics.run import BATCH_SIZE, measure
from onnxprune.types import Cost

CONFIDENCE = (2.5, 97.5)  # percentiles of the bootstrap interval
FEW_SAMPLES = 200  # below this a difference within two standard errors gets a warning

Draws = Sequence[Sequence[MetricEstimate]]  # per bootstrap draw the estimates of both models


@dataclass(frozen=True)
class ClassRow:
    """Comparison of one class.

    Attributes
    ----------
    index, name
        Index and name of the class.
    a, b
        Values of both models.
    difference
        b - a.
    standard_error
        Of the difference; None if it cannot be estimated.
    count
        Number of samples of the class.
    """

    index: int
    name: str
    a: float
    b: float
    difference: float
    standard_error: float | None
    count: float


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`; differences are b - a.

    Attributes
    ----------
    a, b
        Scores over all classes.
    subset_a, subset_b
        Values over the chosen classes; those over all classes if none were chosen.
    difference
        Difference over the chosen classes.
    standard_error, interval
        Paired standard error and 95 % bootstrap interval of the difference; None if they cannot be
        estimated.
    classes
        One row per chosen class.
    only_a, only_b
        Number of samples that only one model has correct, for outcomes of 0 and 1.
    mcnemar
        Exact two-sided probability of such a split if the models were equal.
    cost_a, cost_b
        Costs, if a cost function was given.
    warnings
        Limits of the comparison, as sentences.
    """

    a: Score
    b: Score
    subset_a: float
    subset_b: float
    difference: float
    standard_error: float | None
    interval: tuple[float, float] | None
    classes: tuple[ClassRow, ...]
    only_a: int | None = None
    only_b: int | None = None
    mcnemar: float | None = None
    cost_a: Cost | None = None
    cost_b: Cost | None = None
    warnings: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, float, float, float, float | None]]:
        """Return (name, a, b, b - a, standard error) per row of a table.

        Costs come first, then the metric over all classes, over the chosen classes, and per class.
        """
        rows: list[tuple[str, float, float, float, float | None]] = []
        if self.cost_a is not None and self.cost_b is not None:
            first, second = self.cost_a.as_dict(), self.cost_b.as_dict()
            rows += [
                (key, first[key], second[key], second[key] - first[key], None) for key in first
            ]
        a, b = self.a.value, self.b.value
        if self.subset_a == a and self.subset_b == b:
            rows.append((self.a.name, a, b, b - a, self.standard_error))
        else:
            # the standard error is that of the subset
            name = f"{self.a.name} of {len(self.classes)} classes"
            rows.append((self.a.name, a, b, b - a, None))
            rows.append((name, self.subset_a, self.subset_b, self.difference, self.standard_error))
        return rows + [(r.name, r.a, r.b, r.difference, r.standard_error) for r in self.classes]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON; None for values that are not finite."""
        cost = None
        if self.cost_a is not None and self.cost_b is not None:
            cost = {"a": self.cost_a.as_dict(), "b": self.cost_b.as_dict()}
        values = {
            "a": self.a.as_dict(),
            "b": self.b.as_dict(),
            "subset": {"a": self.subset_a, "b": self.subset_b},
            "difference": self.difference,
            "standard_error": self.standard_error,
            "interval": self.interval,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "mcnemar": self.mcnemar,
            "cost": cost,
            "classes": [vars(r) for r in self.classes],
            "warnings": self.warnings,
        }
        return {key: plain(value) for key, value in values.items()}


def compare(
    a: Model,
    b: Model,
    data: LabeledData,
    metric: str,
    classes: Sequence[int] | None = None,
    *,
    options: MetricOptions = NO_OPTIONS,
    names: Sequence[str] | None = None,
    cost: Callable[[Model], Cost] | None = None,
    threads: int = 1,
    batch_size: int = BATCH_SIZE,
) -> Comparison:
    """Measure two models on the same samples and compare the results.

    Parameters
    ----------
    classes
        Class indices to compare; None = all that occur.
    names
        Class names by index, for the rows.
    cost
        MACs, parameters and bytes of a model, such as `lambda m: analyze(m).cost()`.

    Raises
    ------
    UsageError
        The metric is unknown, no sample has a chosen class, or b cannot take the inputs of a.
    DataError
        The data do not fit the models or the metric.
    """
    _check_inputs(a, b)
    pair = find_metric(metric, options), find_metric(metric, options)
    # one after the other, so that one session is open at a time
    for model, one in zip((a, b), pair, strict=True):
        measure(model, data, [one], threads=threads, batch_size=batch_size)
    return compare_metrics(
        pair[0], pair[1], classes, names=names, costs=(cost(a), cost(b)) if cost else None
    )


def _check_inputs(a: Model, b: Model) -> None:
    """Check that two models have inputs of equal names and types, and of shapes that agree.

    Raises
    ------
    UsageError
        They have not, so that the same samples do not fit both; the message names the inputs.
    """
    first, second = _describe_inputs(a), _describe_inputs(b)
    fits = first.keys() == second.keys() and all(
        kind == second[name][0] and _fits(shape, second[name][1])
        for name, (kind, shape) in first.items()
    )
    if not fits:
        texts = (_spell_inputs(first), _spell_inputs(second))
        raise UsageError(
            "compare-inputs",
            f"the models have different inputs: A reads {texts[0]}, B reads {texts[1]}; "
            "compare models that take the same samples",
        )


def _describe_inputs(model: Model) -> dict[str, tuple[str, tuple[Dim, ...] | None]]:
    """Return element type and shape of every input; None for an unknown rank."""
    shapes = declared_shapes(model)
    return {
        info.name: (
            TensorProto.DataType.Name(info.type.tensor_type.elem_type).lower(),
            shapes.get(info.name),
        )
        for info in model.proto.graph.input
        if info.name not in model.weights
    }


def _fits(a: tuple[Dim, ...] | None, b: tuple[Dim, ...] | None) -> bool:
    """Return whether some array has both shapes; a dynamic length may be any."""
    if a is None or b is None:
        return True
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(
        one == other or not (isinstance(one, int) and isinstance(other, int))
        for one, other in pairs
    )


def _spell_inputs(inputs: Mapping[str, tuple[str, tuple[Dim, ...] | None]]) -> str:
    """Return inputs as "image float 1x3x32x32, ..."."""
    texts = []
    for name, (kind, shape) in inputs.items():
        size = "x".join(str(n) if isinstance(n, int) else "?" for n in shape or ())
        texts.append(" ".join(filter(None, (printable(name), kind, size))))
    return ", ".join(texts) or "nothing"


def compare_metrics(
    a: Metric,
    b: Metric,
    classes: Sequence[int] | None = None,
    *,
    names: Sequence[str] | None = None,
    costs: tuple[Cost, Cost] | None = None,
) -> Comparison:
    """Compare two metrics that have seen the same samples in the same order; see `compare`.

    Raises
    ------
    UsageError
        No sample has a chosen class.
    """
    scores = a.result(), b.result()
    known = sorted(set(scores[0].per_class) | set(scores[1].per_class))
    if classes is not None and (missing := sorted(set(classes) - set(known))):
        raise UsageError(
            "class-missing",
            f"no sample of class {missing[0]}; the data have classes "
            f"{', '.join(map(str, known)) or 'none'}",
        )
    chosen = known
    subset = [scores[0].value, scores[1].value]
    if classes is not None:
        chosen = sorted(set(classes))
        subset = [_read_value(m.estimate(None, chosen)) for m in (a, b)]
    # the same samples for both models in each draw, so that differences are paired
    drawn = resample(
        [a, b],
        min(a.draws, b.draws),
        np.random.default_rng(SEED),
        None if classes is None else chosen,
    )
    differences = [second.value - first.value for first, second in drawn] if drawn else []
    # the test of McNemar is on all samples
    paired = _paired_outcomes(a.outcomes(), b.outcomes()) if classes is None else None
    only_a, only_b, probability = paired or (None, None, None)
    return Comparison(
        *scores,
        subset_a=subset[0],
        subset_b=subset[1],
        difference=subset[1] - subset[0],
        standard_error=_estimate_difference_error(a, b, classes, differences),
        interval=_estimate_interval(differences),
        classes=tuple(_compare_class(c, scores, drawn, names) for c in chosen),
        only_a=only_a,
        only_b=only_b,
        mcnemar=probability,
        cost_a=costs[0] if costs else None,
        cost_b=costs[1] if costs else None,
        warnings=_list_warnings(scores[0].n, drawn),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the exact two-sided probability of McNemar's test (1947).

    Of the samples that one model alone has correct, it is the probability of a split at least as
    uneven under a fair coin.
    """
    # here, because scipy takes long to import and few comparisons need it
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_error(a: Metric, b: Metric) -> float | None:
    """Return the standard error of b - a for two metrics that have seen the same samples.

    None if it cannot be estimated.
    """
    if a.outcomes() is not None and b.outcomes() is not None:
        return _estimate_difference_error(a, b, None, ())
    draws = min(a.draws, b.draws)
    # draws are paired by the numbers of the samples
    drawn = resample([a, b], draws, np.random.default_rng(SEED)) if a.n == b.n else None
    return bootstrap_error([second.value - first.value for first, second in drawn or ()])


def _paired_outcomes(a: np.ndarray | None, b: np.ndarray | None) -> tuple[int, int, float] | None:
    """Return the samples that only a and only b has correct, and McNemar's probability.

    None if outcomes are not 0 and 1.
    """
    if a is None or b is None or len(a) != len(b):
        return None
    # the test counts samples that one model alone has correct
    if not np.isin(np.concatenate([a, b]), (0, 1)).all():
        return None
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    return only_a, only_b, mcnemar(only_a, only_b)


def _estimate_difference_error(
    a: Metric, b: Metric, classes: Sequence[int] | None, differences: Sequence[float]
) -> float | None:
    """Return the paired standard error: exact for means over all samples, else by bootstrap."""
    first, second = a.outcomes(), b.outcomes()
    if classes is None and first is not None and second is not None:
        # answers that agree on all samples may differ on further ones
        if _paired_outcomes(first, second) and np.array_equal(first, second):
            return share_error(np.zeros(len(first)))
        return standard_error(second - first)
    return bootstrap_error(differences)


def _estimate_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Return the bootstrap interval at CONFIDENCE; None without a finite difference."""
    finite = [d for d in differences if math.isfinite(d)]
    if not finite:
        return None
    low, high = (float(np.percentile(finite, percent)) for percent in CONFIDENCE)
    return low, high


def _compare_class(
    index: int,
    scores: tuple[Score, Score],
    drawn: Draws | None,
    names: Sequence[str] | None,
) -> ClassRow:
    """Return the comparison of one class; NaN for a model without a value of it."""
    a, b = (s.per_class.get(index, math.nan) for s in scores)
    differences = [
        second.per_class.get(index, math.nan) - first.per_class.get(index, math.nan)
        for first, second in drawn or []
    ]
    name = names[index] if names and index < len(names) else str(index)
    # counts depend on the labels only, and are the same for both models
    error, count = bootstrap_error(differences), scores[0].counts.get(index, 0.0)
    return ClassRow(index, name, a, b, b - a, error, count)


def _read_value(estimate: MetricEstimate | None) -> float:
    """Return the value of an estimate; NaN if there is none."""
    return math.nan if estimate is None else estimate.value


def _list_warnings(n: int, drawn: Draws | None) -> tuple[str, ...]:
    """Return what limits the comparison."""
    if drawn is None:
        return (
            "no standard error of the difference: fewer than two samples, or a metric that cannot "
            "be reweighted",
        )
    if n < FEW_SAMPLES:
        return (
            f"{plural(n, 'sample')}: differences within two standard errors are not significant",
        )
    return ()
