"""Pruning inside the training loop, then tuning: the network learns with closing masks, is cut once, and learns on.

The surgery comes at the end because a masked network computes what the cut one does.
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
from onnxprune.tune.finetune import TuneResult, score, tune
from onnxprune.tune.fisher import PruneByFisher, Pruning
from onnxprune.tune.loop import TaskLoss
from onnxprune.tune.losses import parse
from onnxprune.tune.settings import FOLDED_LIMIT, Settings
from onnxprune.types import Plan

LABELED = {
    "ce",
    "task",
}  # losses with a gradient at the unpruned model; distillation from itself has none there


@dataclass(frozen=True)
class Pruned:
    """result: of the tuning after the cut, its start the better of the cut trained network and the plan's cut of the untrained one;
    plan: of the given model; trained_score, untuned_score: of these two on the validation samples; steps: of training until the target was met.
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
    settings: Settings = Settings(),  # noqa: B008 - frozen
    how: Pruning = Pruning(),  # noqa: B008 - frozen
    *,
    teacher: Model | None = None,
    task_loss: TaskLoss | None = None,
    validation: Any = None,
    metric: Callable[[], Any] | None = None,
    checkpoint: str | Path | None = None,
    on_event: Listener = silent,
) -> Pruned:
    """Cut channels while training until the budgets are met, then tune what is left.

    Parameters
    ----------
    constraints
        Budgets on counted costs, and the widths that are allowed.
    settings, data, teacher, task_loss, validation, metric, checkpoint, on_event
        As of `tune.finetune.tune`. teacher: None = the given model. Importance is the gradient of the training loss where that has labels, else of labels
        drawn from the network's own answers. Progress until the cut is written beside the checkpoint, with ".pruning" behind its name.

    Raises
    ------
    TargetError
        No channel is left that may go.
    """
    began = time.monotonic()
    hook = PruneByFisher(
        analysis,
        constraints,
        how,
        labeled=bool(LABELED & set(parse(settings.loss))),
        seed=settings.seed,
        threads=settings.threads,
    )
    given: dict[str, Any] = {
        "teacher": teacher or analysis.model,
        "task_loss": task_loss,
        "validation": validation,
        "metric": metric,
    }
    first = None if checkpoint is None else f"{checkpoint}.pruning"
    trained = tune(
        analysis.model,
        data,
        _while_cutting(analysis, settings, how, hook),
        hook=hook,
        checkpoint=first,
        on_event=on_event,
        **given,
    )
    plan = hook.plan()
    starts = _cut_of(analysis, plan, trained.model), cut(analysis, plan)
    scores = [score(m, data, settings, **given) for m in starts]
    left = replace(
        settings,
        limit_s=max(1.0, settings.limit_s - (time.monotonic() - began))
        if settings.limit_s
        else 0.0,
    )
    result = tune(
        starts[scores[1] > scores[0]], data, left, checkpoint=checkpoint, on_event=on_event, **given
    )
    return Pruned(result, plan, scores[0], scores[1], int(trained.history[-1]["step"]))


def _while_cutting(
    analysis: Analysis, settings: Settings, how: Pruning, hook: PruneByFisher
) -> Settings:
    """A constant low rate, until the hook says that it is done."""
    normalized = batchnorm.normalized(analysis.model)
    rate = (
        settings.rate(normalized)
        if normalized or settings.force_lr
        else min(settings.rate(normalized), FOLDED_LIMIT)
    )
    keep = "keep" if settings.batchnorm == "insert" else settings.batchnorm
    return replace(
        settings,
        lr=max(rate * how.lr_ratio, 1e-12),
        batchnorm=keep,
        schedule="constant",
        warmup=0.0,
        steps=how.interval * (hook.most_cuts + 1),
        limit_s=0.0,
    )


def _cut_of(analysis: Analysis, plan: Plan, values: Model) -> Model:
    """The plan's cut of the same graph with other values."""
    here = replace(analysis, model=values)
    return cut(here, replace(plan, source=here.digest))
