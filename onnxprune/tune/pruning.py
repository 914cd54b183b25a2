"""Pruning while training, followed by tuning.

The network trains with masks that close, is cut once, and is tuned further. The graph is cut only
at the end, because a masked network computes the same as the cut one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.allocators.base import Constraints
from onnxprune.analysis.groups import Analysis
from onnxprune.events import Listener, silent
from onnxprune.ir.io import Model
from onnxprune.surgery.cut import cut
from onnxprune.tune import batchnorm
from onnxprune.tune.finetune import score, tune
from onnxprune.tune.fisher import PruneByFisher, Pruning
from onnxprune.tune.loop import TaskLoss
from onnxprune.tune.losses import parse
from onnxprune.tune.settings import FOLDED_LR_LIMIT, TuneResult, TuneSettings
from onnxprune.types import Plan

# Losses with a gradient at the original network; distillation from itself has none there.
LABELED = {"ce", "task"}
MIN_LR = 1e-12
MIN_LIMIT_S = 1.0


@dataclass(frozen=True)
class PrunedAndTuned:
    """Result of `prune_and_tune`.

    Attributes
    ----------
    result : TuneResult
        Result of the tuning after the cut. It starts from the better of the cut trained network
        and the cut original network.
    plan : Plan
        Plan for the given model.
    trained_score, untuned_score : float
        Validation scores of these two starts.
    steps : int
        Training steps until the target was met.
    """

    result: TuneResult
    plan: Plan
    trained_score: float
    untuned_score: float
    steps: int


def prune_and_tune(
    analysis: Analysis,
    data: Any,
    constraints: Constraints,
    settings: TuneSettings = TuneSettings(),  # noqa: B008  # frozen
    pruning: Pruning = Pruning(),  # noqa: B008  # frozen
    *,
    teacher: Model | None = None,
    task_loss: TaskLoss | None = None,
    validation: Any = None,
    metric: Callable[[], Any] | None = None,
    checkpoint: str | Path | None = None,
    on_event: Listener = silent,
) -> PrunedAndTuned:
    """Remove channels while training until the budgets are met, then tune the rest.

    The importance of a channel is the gradient of the training loss if that reads labels, else of
    a loss on labels drawn from the network's own outputs.

    Parameters
    ----------
    constraints
        Budgets on counted costs, and the allowed widths.
    pruning
        Rhythm and normalization of the cuts.
    teacher
        As in `tune.finetune.tune`; None = the given model.
    checkpoint
        As in `tune.finetune.tune`; progress before the cut is in the file of this name with
        ".pruning" appended.
    data, settings, task_loss, validation, metric, on_event
        As in `tune.finetune.tune`.

    Raises
    ------
    TargetError
        No more channels may be removed and the budgets are not met.
    """
    began = time.monotonic()
    common: dict[str, Any] = {
        "teacher": teacher or analysis.model,
        "task_loss": task_loss,
        "validation": validation,
        "metric": metric,
    }
    first = None if checkpoint is None else f"{checkpoint}.pruning"
    tracked = {**common, "on_event": on_event}
    hook = _build_hook(analysis, constraints, pruning, settings)
    while_pruning = _adapt_settings(analysis, settings, pruning, hook)
    trained = tune(analysis.model, data, while_pruning, hook=hook, checkpoint=first, **tracked)
    plan = hook.plan()
    cut_trained, cut_original = _cut_with_values(analysis, plan, trained.model), cut(analysis, plan)
    trained_score = score(cut_trained, data, settings, **common)
    untuned_score = score(cut_original, data, settings, **common)
    # training with closing masks may have damaged the network
    start = cut_original if untuned_score > trained_score else cut_trained
    remaining = _subtract_time(settings, time.monotonic() - began)
    result = tune(start, data, remaining, checkpoint=checkpoint, **tracked)
    steps = int(trained.history[-1]["step"])
    return PrunedAndTuned(result, plan, trained_score, untuned_score, steps)


def _build_hook(
    analysis: Analysis, constraints: Constraints, pruning: Pruning, settings: TuneSettings
) -> PruneByFisher:
    """Return the hook that closes masks."""
    return PruneByFisher(
        analysis,
        constraints,
        pruning,
        labeled=bool(LABELED & set(parse(settings.loss))),
        seed=settings.seed,
        threads=settings.threads,
    )


def _adapt_settings(
    analysis: Analysis, settings: TuneSettings, pruning: Pruning, hook: PruneByFisher
) -> TuneSettings:
    """Return settings with a constant learning rate, for as long as the hook needs."""
    normalized = batchnorm.is_normalized(analysis.model)
    lr = settings.peak_lr(normalized)
    # BatchNormalization is inserted after the cut only: until then the lower limit applies
    if not normalized and not settings.force_lr:
        lr = min(lr, FOLDED_LR_LIMIT)
    return replace(
        settings,
        lr=max(lr * pruning.lr_ratio, MIN_LR),
        batchnorm="keep" if settings.batchnorm == "insert" else settings.batchnorm,
        schedule="constant",
        warmup=0.0,
        # the hook ends the run; this is an upper bound
        steps=pruning.interval * (hook.max_cuts + 1),
        limit_s=0.0,
    )


def _subtract_time(settings: TuneSettings, seconds: float) -> TuneSettings:
    """Return settings with what remains of the time limit."""
    if not settings.limit_s:
        return settings
    return replace(settings, limit_s=max(MIN_LIMIT_S, settings.limit_s - seconds))


def _cut_with_values(analysis: Analysis, plan: Plan, values: Model) -> Model:
    """Return the plan's cut of the same graph with other values."""
    other = replace(analysis, model=values)
    return cut(other, replace(plan, source=other.digest))
