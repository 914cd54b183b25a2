"""Scores from the first-order change of a loss when a channel is removed, without labels and without a training framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxprune.autodiff import Loss
from onnxprune.criteria.base import Context
from onnxprune.statistics.ablation import ablate
from onnxprune.statistics.gradients import comparable, default_losses, mask_gradients
from onnxprune.types import Scores

Formula = Callable[[np.ndarray], np.ndarray]


def taylor(context: Context, losses: Sequence[Loss] | None = None) -> Scores:
    """Absolute first-order change of the loss, summed over samples (Molchanov et al. 2017, the absolute value a sample, never of the mean).

    losses: as for `gradient_scores`.
    """
    return gradient_scores(context, _absolute, losses)


def fisher(context: Context, losses: Sequence[Loss] | None = None) -> Scores:
    """Squared mask gradient summed over samples (Group Fisher, Liu et al. 2021, eq. 4): over positions, then copies, then squared, then samples.

    Without labels: drawn from the model's own softmax, which makes it the Fisher information; for heads without classes a vector of signs.
    losses: as for `gradient_scores`.
    """
    return gradient_scores(context, _squared, losses)


def gradient_scores(
    context: Context,
    formula: Formula,
    losses: Sequence[Loss] | None = None,
    labels: np.ndarray | None = None,
) -> Scores:
    """Scores of all groups from their (samples, channels) mask gradients.

    Parameters
    ----------
    losses, labels
        As for `mask_gradients`; None = label-free on all heads in one pass, see `head_losses`.

    Notes
    -----
    Groups with a copy before a node that no gradient passes are scored by removing each channel in turn instead: exact, and a forward pass a channel.
    """
    data = context.required_data("a gradient criterion")
    losses = tuple(losses) if losses is not None else head_losses(context)
    options = {"seed": context.seed, "batch_size": context.batch_size, "threads": context.threads}
    found = mask_gradients(
        context.analysis, data, losses, labels=labels, known=context.cache, **options
    )
    rows = dict(found.rows)
    if found.incomplete:
        rows |= ablate(context.analysis, data, losses, found.incomplete, labels=labels, **options)
    return {name: formula(rows[name]) for name in context.analysis.causes if name in rows}


def head_losses(context: Context) -> tuple[Loss, ...]:
    """A label-free loss for each head, those without classes in units of their spread on the context's model and data."""
    data, model = context.required_data("a gradient criterion"), context.analysis.model
    return comparable(
        default_losses(model), model, data, batch_size=context.batch_size, threads=context.threads
    )


def by_head(context: Context, formula: Formula | None = None) -> Mapping[str, Scores]:
    """Scores for each output head alone: importance by task. One backward pass a head."""
    return {
        loss.head: gradient_scores(context, formula or _squared, [loss])
        for loss in default_losses(context.analysis.model)
    }


def labeled(
    context: Context, labels: np.ndarray, head: str | None = None, formula: Formula | None = None
) -> Scores:
    """Scores with true labels, one a sample (or a pixel) in the order of the data; head: the only output, unless named."""
    name = head if head is not None else context.analysis.model.proto.graph.output[0].name
    return gradient_scores(context, formula or _squared, [Loss("labels", name)], labels)


def _absolute(rows: np.ndarray) -> np.ndarray:
    return np.abs(rows).sum(0)


def _squared(rows: np.ndarray) -> np.ndarray:
    return (rows**2).sum(0)
