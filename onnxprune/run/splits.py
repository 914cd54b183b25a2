"""Splits of the inputs of a run by purpose: calibration, selection, report."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.data.dataset import Data, split, without_copies
from onnxprune.data.labeled import LabeledData
from onnxprune.errors import DataError
from onnxprune.run.adapter import HELD_OUT_MOST, HELD_OUT_PART, selects_unlabeled
from onnxprune.run.recipe import Recipe

SELECTED_PART = 4  # one labeled sample of so many selects among candidates
SELECTED_LEAST, SELECTED_MOST = 25, 1000


@dataclass(frozen=True)
class Splits:
    """Inputs by purpose; no input is in two parts.

    Attributes
    ----------
    calibration
        Score channels and refit weights.
    selection, selection_labels
        Select among finished models, without and with labels; None if there is nothing to
        select, or too few samples.
    report, report_labels
        Held-out inputs, for figures only; None if there are too few samples.
    """

    calibration: Data
    selection: Data | None = None
    report: Data | None = None
    selection_labels: LabeledData | None = None
    report_labels: LabeledData | None = None

    def describe(self) -> dict[str, str]:
        """Return part -> its inputs in one line, for real inputs; copies are not distinct."""
        parts = {
            "calibration": self.calibration,
            "selection": self.selection,
            "report": self.report,
        }
        labels = {"selection_labels": self.selection_labels, "report_labels": self.report_labels}
        lines = {}
        for name, data in parts.items():
            if data is not None and not data.warning:
                distinct = len(set(data.digests()))
                copies = "" if distinct == len(data.chosen) else f", {distinct} distinct"
                lines[name] = data.describe() + copies
        for name, labeled in labels.items():
            if labeled is not None:
                lines[name] = labeled.describe()
        return lines


def split_inputs(data: Data, labels: LabeledData | None, recipe: Recipe) -> Splits:
    """Split the inputs of a run.

    Inputs are held out for the report if there are enough real ones, and as many for selection if
    the recipe has a tolerance, or candidates without labels.

    Raises
    ------
    DataError
        There are too few for either.
    """
    calibration, selection, report = _split_unlabeled(data, recipe)
    if labels is None or not recipe.candidate:
        return Splits(calibration, selection, report, None, labels)
    count = min(SELECTED_MOST, labels.samples // SELECTED_PART)
    # a selection by so few would be chance, so all labels serve the report
    if count < SELECTED_LEAST:
        return Splits(calibration, selection, report, None, labels)
    selected, rest = labels.split(count / labels.samples, recipe.seed)
    return Splits(calibration, selection, report, selected, rest)


def _split_unlabeled(data: Data, recipe: Recipe) -> tuple[Data, Data | None, Data | None]:
    """Return calibration, selection and held-out inputs."""
    selecting = selects_unlabeled(recipe)
    batch = data.inputs.batch or 1
    parts = HELD_OUT_PART + (2 if selecting else 1)
    count = min(HELD_OUT_MOST, len(data.chosen) // parts)
    count -= count % batch  # models with a fixed batch size take full batches only
    # a mirror image on the other side of a split would not be new
    if data.flipped or data.warning:
        count = 0
    if not count:
        if selecting:
            option = "a candidate" if recipe.max_divergence is None else "max_divergence"
            raise DataError(
                "data-samples",
                f"{option} needs separate real inputs to measure on; "
                f"{data.describe()} are too few, or synthetic: give at least "
                f"{HELD_OUT_PART + 2} batches",
            )
        return data, None, None
    rest, report = split(data, len(data.chosen) - count, count)
    # a copy of a calibration input would not be new
    held_out = without_copies(report, rest)
    if not selecting:
        return rest, None, held_out
    rest, selection = split(rest, len(rest.chosen) - count, count)
    # a selection cannot be kept without inputs, so copies are better than none
    return rest, without_copies(selection, rest) or selection, held_out
