"""Scores from the first-order change of a loss when a channel is removed.

Needs neither labels nor a training framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxprune.autodiff import LABELS, Loss
from onnxprune.criteria.base import Context
from onnxprune.criteria.memo import Kind
from onnxprune.statistics.ablation import ablate
from onnxprune.statistics.gradients import comparable, default_losses, mask_gradients
from onnxprune.types import Scores

Formula = Callable[[np.ndarray], np.ndarray]  # (samples, channels) -> (channels,)
_BATCH_SIZES = Kind[dict[int, int]]("batch sizes at which samples do not mix")


def taylor(
    context: Context,
    losses: Sequence[Loss] | None = None,
    batch_sizes: dict[int, int] | None = None,
) -> Scores:
    """Compute sum over samples of abs(g), g being the mask gradient of the sample.

    First-order Taylor criterion of Molchanov et al. 2017 (arXiv 1611.06440, eq. 8). The absolute
    value is taken per sample, so that changes of opposite sign do not cancel.

    Parameters
    ----------
    losses, batch_sizes
        As for `gradient_scores`.
    """
    return gradient_scores(context, _sum_absolute, losses, batch_sizes=batch_sizes)


def fisher(
    context: Context,
    losses: Sequence[Loss] | None = None,
    batch_sizes: dict[int, int] | None = None,
) -> Scores:
    """Compute sum over samples of g**2, g being the mask gradient of the sample.

    Group Fisher importance (Liu et al. 2021, arXiv 2108.00708, eq. 4): summed over positions and
    coupled copies before squaring. Labels are drawn from the model's own softmax, which makes it
    the Fisher information; heads without classes get a vector of random signs.

    Parameters
    ----------
    losses, batch_sizes
        As for `gradient_scores`.
    """
    return gradient_scores(context, _sum_squares, losses, batch_sizes=batch_sizes)


def gradient_scores(
    context: Context,
    formula: Formula,
    losses: Sequence[Loss] | None = None,
    labels: np.ndarray | None = None,
    batch_sizes: dict[int, int] | None = None,
) -> Scores:
    """Score all groups by their mask gradients.

    Parameters
    ----------
    formula
        Maps (samples, channels) mask gradients to (channels,) scores.
    losses, labels
        As for `mask_gradients`; None = label-free on all heads in one pass, see `head_losses`.
    batch_sizes
        As for `mask_gradients`; None = shared by the calls on this context.

    Notes
    -----
    Groups with a copy upstream of a node that no gradient passes are scored by removing each
    channel in turn instead: exact, at one forward pass per channel.
    """
    data = context.required_data("a gradient criterion")
    losses = tuple(losses) if losses is not None else head_losses(context)
    if batch_sizes is None:
        # the sizes are found by trial runs, which the next criterion need not repeat
        batch_sizes = context.memoize(_BATCH_SIZES, dict)
    gradients = mask_gradients(
        context.analysis,
        data,
        losses,
        labels=labels,
        seed=context.seed,
        batch_size=context.batch_size,
        threads=context.threads,
        batch_sizes=batch_sizes,
    )
    rows = dict(gradients.rows)
    if gradients.incomplete:
        rows |= ablate(
            context.analysis,
            data,
            losses,
            gradients.incomplete,
            labels=labels,
            seed=context.seed,
            batch_size=context.batch_size,
            threads=context.threads,
        )
    # in the order of the groups
    return {name: formula(rows[name]) for name in context.analysis.causes if name in rows}


def head_losses(context: Context) -> tuple[Loss, ...]:
    """Return one label-free loss per head on the context's model and data.

    Losses of heads without classes are divided by the standard deviation of the head's output.
    """
    data, model = context.required_data("a gradient criterion"), context.analysis.model
    return comparable(
        default_losses(model), model, data, batch_size=context.batch_size, threads=context.threads
    )


def by_head(context: Context, formula: Formula | None = None) -> Mapping[str, Scores]:
    """Return scores for each output head alone: importance per task.

    Notes
    -----
    Cost: one backward pass over the data per head.
    """
    return {
        loss.head: gradient_scores(context, formula or _sum_squares, [loss])
        for loss in default_losses(context.analysis.model)
    }


def labeled(
    context: Context, labels: np.ndarray, head: str | None = None, formula: Formula | None = None
) -> Scores:
    """Return scores with true labels.

    Parameters
    ----------
    labels
        One class per sample (or per pixel), in the order of the data.
    head
        Output to compare with them; None = the first.
    """
    name = head if head is not None else context.analysis.model.proto.graph.output[0].name
    return gradient_scores(context, formula or _sum_squares, [Loss(LABELS, name)], labels)


def _sum_absolute(rows: np.ndarray) -> np.ndarray:
    return np.abs(rows).sum(0)


def _sum_squares(rows: np.ndarray) -> np.ndarray:
    return (rows**2).sum(0)
