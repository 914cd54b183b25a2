"""Fine-tuning a graph: the loop, its guards and its memory.

The start is a candidate: what comes back is never worse than it on the validation samples. The same inputs, settings and seed give the same
result, and so does a run that was killed and started again with its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import OnnxpruneError, UsageError
from onnxprune.events import Listener, silent
from onnxprune.ir.io import Model, digest
from onnxprune.ir.passes.lift_weights import lift_weights
from onnxprune.tune import batchnorm
from onnxprune.tune.bridge import as_feeds, to_module, write_back
from onnxprune.tune.call import torch
from onnxprune.tune.distributed import World, join_world, own_device
from onnxprune.tune.heads import common_features, heads
from onnxprune.tune.loop import (
    Hook,
    Run,
    TaskLoss,
    effective,
    loss_and_outputs,
    resume,
    train,
    validate_start,
)
from onnxprune.tune.losses import needs_teacher, parse
from onnxprune.tune.samples import Samples, gather
from onnxprune.tune.settings import Settings
from onnxprune.tune.state import put
from onnxprune.tune.validate import Validator

CALIBRATION_SAMPLES = 256
BATCH_TOLERANCE = 1e-3  # of the largest output: two samples at once against one at a time


@dataclass(frozen=True)
class TuneResult:
    """model: the best found, the given one where nothing was better. history: a row a validation (epoch 0 = the start): score, loss, seconds.

    score, start_score: of the best and of the start on the validation samples, higher is better; epoch: of the best.
    """

    model: Model
    history: Sequence[Mapping[str, Any]]
    score: float
    start_score: float
    epoch: int


def tune(
    model: Model,
    data: Any,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    *,
    teacher: Model | None = None,
    task_loss: TaskLoss | None = None,
    validation: Any = None,
    metric: Callable[[], Any] | None = None,
    hook: Hook | None = None,
    checkpoint: str | Path | None = None,
    on_event: Listener = silent,
) -> TuneResult:
    """Fine-tune a model's values; its graph stays as it is (in canonical form where weights were Constant nodes or in functions).

    Parameters
    ----------
    data
        Labeled data (`onnxprune.data.labeled`), calibration data (`onnxprune.data`), `Samples`, or arrays by input name. Held in memory.
    teacher
        The unpruned model; every term but "ce" and "task" needs it.
    task_loss
        (output tensors by name, label tensors by name) -> mean loss of the batch; the term "task".
    validation
        Like `data`; None = a share of it that is not tuned on.
    metric
        Makes a `evaluate.Metric`; None = accuracy where there are labels and classes, else the loss (negative).
    hook
        Masks and the like.
    checkpoint
        File to write progress to and to go on from; removed by nobody, refused by another run.
    on_event
        Told of stage "tune" (a progress a step, with the seconds left) and "validate" (an end a validation).

    Raises
    ------
    UsageError
        A loss without its teacher, a learning rate that destroys a folded graph, a checkpoint of another run.
    DataError
        The data do not fit the model or lack labels that the loss needs.
    ModelError
        An operator that cannot be tuned through.
    """
    job = _Job.of(model, data, settings, teacher, task_loss, validation, metric)
    with _Machine(job.settings):
        run, validator, work = job.opened(hook)
        path = Path(checkpoint) if checkpoint is not None else None
        if not resume(run, path, job.key(run)):
            validate_start(run, validator, on_event)
        train(run, job.rest, validator, path, job.key(run), on_event)
        return _result(job.model, work, run)


def score(
    model: Model,
    data: Any,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    *,
    teacher: Model | None = None,
    task_loss: TaskLoss | None = None,
    validation: Any = None,
    metric: Callable[[], Any] | None = None,
) -> float:
    """What `tune` would give as the start's score, with the same arguments."""
    job = _Job.of(model, data, settings, teacher, task_loss, validation, metric)
    with _Machine(job.settings):
        run, validator, _ = job.opened(None)
        return float(
            run.world.from_leader(validator.score(run.module)[0] if run.world.leads else None)
        )


@dataclass(frozen=True)
class _Job:
    """What a run is given, checked. rest, held: samples to tune and to validate with."""

    model: Model
    settings: Settings
    rate: float
    teacher: Model | None
    weights: Mapping[str, float]
    task: TaskLoss | None
    metric: Callable[[], Any] | None
    rest: Samples
    held: Samples

    @staticmethod
    def of(
        model: Model,
        data: Any,
        settings: Settings,
        teacher: Model | None,
        task: TaskLoss | None,
        validation: Any,
        metric: Callable[[], Any] | None,
    ) -> _Job:
        """Read the data."""
        model, teacher = (
            lift_weights(model),
            lift_weights(teacher) if teacher is not None else None,
        )
        weights = parse(settings.loss)
        _check(weights, teacher, task)
        settings = replace(settings, device=own_device(settings.device))
        rate = settings.rate(batchnorm.normalized(model))
        samples = gather(data)
        rest, held = (
            (samples, gather(validation))
            if validation is not None
            else samples.split(settings.validation, settings.seed)
        )
        return _Job(model, settings, rate, teacher, weights, task, metric, rest, held)

    def opened(self, hook: Hook | None) -> tuple[Run, Validator, Model]:
        """(modules and optimizer, the validator, the graph that is tuned)."""
        world = join_world(self.settings.device)
        settings = _batch_that_fits(self.model, self.settings, self.rest)
        work = (
            _with_normalization(self.model, settings, self.rest)
            if settings.batchnorm == "insert"
            else self.model
        )
        run = _prepare(
            work, settings, self.rate, self.teacher, self.weights, self.task, hook, world, self.rest
        )
        validator = Validator(
            self.held,
            settings,
            run.heads,
            self.metric,
            lambda inputs, labels: loss_and_outputs(run, inputs, labels),
        )
        return run, validator, work

    def key(self, run: Run) -> str:
        """What a checkpoint must agree on."""
        kept = {
            n: v
            for n, v in asdict(run.settings).items()
            if n not in ("threads", "checkpoint_s", "limit_s", "device")
        }
        own = [
            run.hook.signature() if run.hook is not None else "",
            getattr(self.task, "__qualname__", "") if self.task is not None else "",
        ]
        parts = [
            digest(self.model),
            digest(self.teacher) if self.teacher is not None else "",
            self.rest.fingerprint(),
            self.held.fingerprint(),
            kept,
            *own,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check(weights: Mapping[str, float], teacher: Model | None, task_loss: TaskLoss | None) -> None:
    """Whether everything that the loss needs is there."""
    if needs_teacher(weights) and teacher is None:
        raise UsageError(
            "tune-teacher",
            f"loss {'+'.join(weights)} follows the unpruned model; pass it as teacher, or use ce with labels",
        )
    if "task" in weights and task_loss is None:
        raise UsageError(
            "tune-task", "loss task is the caller's own; pass it as task_loss (module:function)"
        )


class _Machine:
    """torch's threads and determinism for the time of a run, then as they were."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        if settings.device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError(
                "tune-device", f"device {settings.device!r} is not there; torch sees no GPU"
            )

    def __enter__(self) -> None:
        self.before = (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.set_num_threads(self.settings.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *problem: object) -> None:
        torch.set_num_threads(self.before[0])
        torch.use_deterministic_algorithms(self.before[1], warn_only=self.before[2])


def _batch_that_fits(model: Model, settings: Settings, samples: Samples) -> Settings:
    """The batch size, or the graph's own where it runs several samples at once to other values than one at a time."""
    module = to_module(model)
    declared = module.declared_batch
    if not declared or declared == settings.batch_size or len(samples) < 2 * declared:
        return settings
    both = as_feeds(samples.take(np.arange(2 * declared)).inputs, module)
    try:
        with torch.no_grad():
            together = module(both)
            halves = [
                module({n: v[i * declared : (i + 1) * declared] for n, v in both.items()})
                for i in (0, 1)
            ]
        worst = max(
            float(
                (v - torch.cat([h[n] for h in halves])).abs().max() / v.abs().max().clamp_min(1e-12)
            )
            for n, v in together.items()
            if v.is_floating_point()
        )
    except (OnnxpruneError, RuntimeError):
        worst = math.inf
    return settings if worst < BATCH_TOLERANCE else replace(settings, batch_size=declared)


def _with_normalization(model: Model, settings: Settings, samples: Samples) -> Model:
    """The graph with BatchNormalization put back, set on up to 256 samples."""
    module, places = to_module(model), batchnorm.sites(model)
    if not places:
        raise UsageError(
            "tune-batchnorm",
            "batchnorm insert: the graph has no convolution that lacks a normalization; use keep",
        )
    few = samples.take(np.arange(min(len(samples), CALIBRATION_SAMPLES)))
    rows = [
        np.arange(i, min(i + settings.batch_size, len(few)))
        for i in range(0, len(few), settings.batch_size)
    ]
    return batchnorm.insert(
        model,
        batchnorm.moments(module, places, [as_feeds(few.take(r).inputs, module) for r in rows]),
    )


def _prepare(
    model: Model,
    settings: Settings,
    rate: float,
    teacher: Model | None,
    weights: Mapping[str, float],
    task: TaskLoss | None,
    hook: Hook | None,
    world: World,
    samples: Samples,
) -> Run:
    """Modules, optimizer and what the loss reads."""
    module = to_module(model).to(settings.device)
    guide = (
        to_module(teacher).to(settings.device)
        if teacher is not None and needs_teacher(weights)
        else None
    )
    one = as_feeds(
        samples.take(np.arange(max(1, module.declared_batch)) % len(samples)).inputs, module
    )
    features = list(settings.features) if "feature" in weights else []
    if "feature" in weights and guide is not None and not features:
        features = common_features(module, guide, one)
    with torch.no_grad():
        ranks = {n: v.ndim for n, v in module(one).items()}
    groups = [
        {"params": [p], "lr_scale": settings.lr_scale.get(n, 1.0)}
        for n, p in module.named().items()
    ]
    if not groups:
        raise UsageError("tune-nothing", "the graph has no float weights to tune")
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=settings.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            groups, lr=rate, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
        )
    if hook is not None:
        hook.start(module)
    return Run(
        settings,
        rate,
        module,
        guide,
        heads(model, settings.class_axis, ranks),
        weights,
        features,
        task,
        world,
        optimizer,
        hook,
    )


def _result(model: Model, work: Model, run: Run) -> TuneResult:
    """The best values in the given graph; the last where a hook accepted none."""
    state = run.state
    score, start = (
        (state.best_score[0] if state.best else state.history[-1]["score"]),
        state.history[0]["score"],
    )
    if state.best and state.best_epoch == 0 and run.hook is None:
        return TuneResult(model, state.history, score, start, 0)
    put(run.module, state.best or effective(run.module))
    run.module.transform, run.module.gates = None, {}
    tuned = write_back(work, run.module)
    return TuneResult(
        batchnorm.fold(tuned, model) if work is not model else tuned,
        state.history,
        score,
        start,
        state.best_epoch,
    )
