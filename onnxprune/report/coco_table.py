"""COCO's table of twelve figures, before and after, for terminal and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxprune.metrics.detection import TWELVE
from onnxprune.report.data import Report
from onnxprune.report.text import columns

_NONE = "-"  # no box of this size, or sizes of images unknown


@dataclass(frozen=True)
class CocoTable:
    """Twelve figures of one metric.

    Attributes
    ----------
    metric
        Name of the metric.
    titles
        AP, AP50, ...
    rows
        Title of a model, and its figures as texts.
    """

    metric: str
    titles: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]

    def text(self) -> str:
        """Return the table as lines."""
        return columns([(self.metric, *self.titles), *((name, *row) for name, row in self.rows)])


def coco_tables(report: Report) -> list[CocoTable]:
    """Return the table of each metric that has the twelve figures."""
    tables = []
    for metric, row in report.quality.items():
        details = row.details or {}
        pair = [{n: v[k] for n, v in details.items()} for k in (0, 1)]
        table = coco_table(metric, {"before": pair[0], "after": pair[1]})
        tables += [table] if table else []
    return tables


def coco_table(metric: str, models: Mapping[str, Mapping[str, float | None]]) -> CocoTable | None:
    """Return the table of several models, None if one lacks a figure.

    Parameters
    ----------
    models
        Title of a model -> details of its score.
    """
    if any(name not in details for details in models.values() for name in TWELVE):
        return None
    rows = [(name, [_spell(details[n]) for n in TWELVE]) for name, details in models.items()]
    return CocoTable(metric, list(TWELVE.values()), rows)


def _spell(value: float | None) -> str:
    """Return three decimals; a dash for no value."""
    # NaN differs from itself
    return _NONE if value is None or value != value else f"{value:.3f}"
