"""Two models on the same labeled samples, class by class, with the spread of the difference, beside what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.data.labeled import LabeledData
from onnxprune.errors import UsageError
from onnxprune.ir.io import Model
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import (
    NO_OPTIONS,
    SEED,
    Metric,
    MetricEstimate,
    MetricOptions,
    Score,
    plain,
    resample,
    spread,
    standard_error,
)
from onnxprune.metrics.run import BATCH_SIZE, measure
from onnxprune.types import Cost

CONFIDENCE = (2.5, 97.5)  # percentiles of the bootstrap interval


@dataclass(frozen=True)
class ClassRow:
    """One class: values of both models, difference b - a with its standard error (None where it cannot be told), how many samples."""

    index: int
    name: str
    a: float
    b: float
    difference: float
    standard_error: float | None
    count: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; a is the first model, differences are b - a.

    a, b: scores over all classes; subset_a, subset_b: over the chosen classes (the same as all where none were chosen); difference, standard_error,
    interval: of the chosen classes, over samples, paired (interval: 95 % bootstrap); only_a, only_b, mcnemar: for outcomes of 0 and 1, samples that
    only a or only b has right and the exact two-sided probability of such a split by chance; cost_a, cost_b: where a cost function was given.
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
    warnings: tuple[str, ...] = field(default=())

    def rows(self) -> list[tuple[str, float, float, float, float | None]]:
        """(name, a, b, b - a, standard error) for a table: costs, the metric over all classes, over the chosen ones, then each class."""
        found: list[tuple[str, float, float, float, float | None]] = []
        if self.cost_a is not None and self.cost_b is not None:
            first, second = self.cost_a.as_dict(), self.cost_b.as_dict()
            found += [
                (key, first[key], second[key], second[key] - first[key], None) for key in first
            ]
        chosen = self.subset_a != self.a.value or self.subset_b != self.b.value
        found.append(
            (
                self.a.name,
                self.a.value,
                self.b.value,
                self.b.value - self.a.value,
                None if chosen else self.standard_error,
            )
        )
        if chosen:
            found.append(
                (
                    f"{self.a.name} of {len(self.classes)} classes",
                    self.subset_a,
                    self.subset_b,
                    self.difference,
                    self.standard_error,
                )
            )
        return found + [(r.name, r.a, r.b, r.difference, r.standard_error) for r in self.classes]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, None for what is not finite."""
        found = {
            "a": self.a.as_dict(),
            "b": self.b.as_dict(),
            "subset": {"a": self.subset_a, "b": self.subset_b},
            "difference": self.difference,
            "standard_error": self.standard_error,
            "interval": self.interval,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "mcnemar": self.mcnemar,
            "cost": None
            if self.cost_a is None or self.cost_b is None
            else {"a": self.cost_a.as_dict(), "b": self.cost_b.as_dict()},
            "classes": [vars(r) for r in self.classes],
            "warnings": self.warnings,
        }
        return {key: plain(value) for key, value in found.items()}


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
    """Measure two models on the same samples.

    Parameters
    ----------
    classes
        Class indices to compare; None: all that occur.
    names
        Class names by index, for the rows.
    cost
        MACs, params and bytes of a model, such as `lambda m: analyze(m).cost()`.

    Raises
    ------
    UsageError
        Unknown metric, or a chosen class that no sample has.
    DataError
        Data that do not fit.
    """
    pair = find_metric(metric, options), find_metric(metric, options)
    for model, one in zip((a, b), pair, strict=False):
        measure(model, data, [one], threads=threads, batch_size=batch_size)
    return compare_metrics(
        pair[0], pair[1], classes, names=names, costs=(cost(a), cost(b)) if cost else None
    )


def compare_metrics(
    a: Metric,
    b: Metric,
    classes: Sequence[int] | None = None,
    *,
    names: Sequence[str] | None = None,
    costs: tuple[Cost, Cost] | None = None,
) -> Comparison:
    """As `compare`, from two metrics that have seen the same samples in the same order; UsageError for a chosen class that does not occur."""
    scores = a.result(), b.result()
    here = sorted(set(scores[0].per_class) | set(scores[1].per_class))
    if classes is not None and (missing := sorted(set(classes) - set(here))):
        raise UsageError(
            "class-missing",
            f"no sample of class {missing[0]}; the data have {', '.join(map(str, here)) or 'no classes'}",
        )
    chosen = here if classes is None else sorted(set(classes))
    subset = [
        s.value if classes is None else _value(m.estimate(None, chosen))
        for m, s in zip((a, b), scores, strict=False)
    ]
    drawn = resample(
        [a, b],
        min(a.draws, b.draws),
        np.random.default_rng(SEED),
        classes if classes is None else chosen,
    )
    gaps = [second.value - first.value for first, second in drawn] if drawn else []
    paired = _paired(a.outcomes(), b.outcomes()) if classes is None else None
    only_a, only_b, chance = paired or (None, None, None)
    finite = [g for g in gaps if math.isfinite(g)]
    return Comparison(
        *scores,
        subset_a=subset[0],
        subset_b=subset[1],
        difference=subset[1] - subset[0],
        standard_error=_gap_error(a, b, classes, gaps),
        interval=(
            float(np.percentile(finite, CONFIDENCE[0])),
            float(np.percentile(finite, CONFIDENCE[1])),
        )
        if finite
        else None,
        classes=tuple(_row(c, scores, drawn, names) for c in chosen),
        only_a=only_a,
        only_b=only_b,
        mcnemar=chance,
        cost_a=costs[0] if costs else None,
        cost_b=costs[1] if costs else None,
        warnings=_warnings(scores[0].n, drawn),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided probability (McNemar 1947): of n samples that one model alone has right, a split at least as uneven under a fair coin."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _paired(a: np.ndarray | None, b: np.ndarray | None) -> tuple[int, int, float] | None:
    """Samples that only a and only b has right, and McNemar's probability; None where outcomes are not 0 and 1."""
    if (
        a is None
        or b is None
        or len(a) != len(b)
        or not np.isin(np.concatenate([a, b]), (0, 1)).all()
    ):
        return None
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    return only_a, only_b, mcnemar(only_a, only_b)


def _gap_error(
    a: Metric, b: Metric, classes: Sequence[int] | None, gaps: Sequence[float]
) -> float | None:
    """Of the difference: exact for means of paired samples, else by the bootstrap."""
    first, second = a.outcomes(), b.outcomes()
    if classes is None and first is not None and second is not None:
        return standard_error(second - first)
    return spread(gaps)


def _row(
    index: int,
    scores: tuple[Score, Score],
    drawn: list[list[MetricEstimate]] | None,
    names: Sequence[str] | None,
) -> ClassRow:
    a, b = (s.per_class.get(index, math.nan) for s in scores)
    gaps = [
        second.per_class.get(index, math.nan) - first.per_class.get(index, math.nan)
        for first, second in drawn or []
    ]
    name = names[index] if names and index < len(names) else str(index)
    return ClassRow(index, name, a, b, b - a, spread(gaps), scores[0].counts.get(index, 0.0))


def _value(estimate: MetricEstimate | None) -> float:
    return math.nan if estimate is None else estimate.value


def _warnings(n: int, drawn: list[list[MetricEstimate]] | None) -> tuple[str, ...]:
    if drawn is None:
        return (
            "the spread of the difference cannot be told: fewer than two samples, or a metric that cannot be reweighted",
        )
    return (f"{n} samples: differences within two standard errors say nothing",) if n < 200 else ()
