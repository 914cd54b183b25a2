"""Fine-tuning of a graph's weights: inputs, guards and result.

The start is a candidate: the result is never worse than it on the validation samples. The same
inputs, settings and seed give the same result, also for a run that was killed and resumed from
its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import OnnxpruneError, UsageError
from onnxprune.events import Listener, silent
from onnxprune.ir.io import Model, digest
from onnxprune.ir.passes.lift_weights import lift_weights
from onnxprune.tune import batchnorm
from onnxprune.tune.bridge import OnnxModule, as_feeds, to_module, write_back
from onnxprune.tune.call import torch
from onnxprune.tune.distributed import World, join_world, own_device
from onnxprune.tune.heads import common_features, heads
from onnxprune.tune.loop import (
    Hook,
    TaskLoss,
    TrainingRun,
    effective_values,
    loss_and_outputs,
    resume,
    train,
    validate_start,
)
from onnxprune.tune.losses import needs_teacher, parse
from onnxprune.tune.samples import Samples, gather
from onnxprune.tune.settings import TuneResult, TuneSettings
from onnxprune.tune.state import load_values
from onnxprune.tune.validate import Validator

CALIBRATION_SAMPLES = 256
# of the largest output: two declared batches at once against one at a time
BATCH_TOLERANCE = 1e-3
# settings that do not change what a checkpoint holds
_FREE_SETTINGS = frozenset({"threads", "checkpoint_s", "limit_s", "device"})


def tune(
    model: Model,
    data: Any,
    settings: TuneSettings = TuneSettings(),  # noqa: B008  # frozen
    *,
    teacher: Model | None = None,
    task_loss: TaskLoss | None = None,
    validation: Any = None,
    metric: Callable[[], Any] | None = None,
    hook: Hook | None = None,
    checkpoint: str | Path | None = None,
    on_event: Listener = silent,
) -> TuneResult:
    """Fine-tune the weights of a model; its graph does not change.

    Weights that were Constant nodes or inside functions become initializers.

    Parameters
    ----------
    data
        Labeled data (`onnxprune.data.labeled`), calibration data (`onnxprune.data`), `Samples`,
        or arrays by input name. Held in memory.
    teacher
        Original model; every loss term but "ce" and "task" compares with it.
    task_loss
        (output tensors by name, label tensors by name) -> mean loss of the batch; the term "task".
    validation
        Like `data`; None = a share of it that is held out.
    metric
        Factory of an `onnxprune.metrics` metric; None = accuracy if there are labels and classes,
        else minus the loss.
    hook
        Extension of the forward pass, such as masks.
    checkpoint
        Progress file, from which the run resumes; never deleted automatically, rejected if it
        belongs to a different run.
    on_event
        Receives the stages "tune" (progress per step, with the seconds left) and "validate" (one
        end per validation).

    Raises
    ------
    UsageError
        A loss without its teacher, a learning rate that destroys a folded graph, a checkpoint of
        a different run.
    DataError
        The data do not fit the model or lack labels that the loss needs.
    ModelError
        An operator without a torch implementation.
    """
    job = _TuneJob.read(model, data, settings, teacher, task_loss, validation, metric)
    with _TorchState(job.settings):
        run, validator, tuned_graph = job.open(hook)
        path = Path(checkpoint) if checkpoint is not None else None
        key = job.key(run)
        # a resumed run has scored its start already
        if not resume(run, path, key):
            validate_start(run, validator, on_event)
        train(run, job.training, validator, path, key, on_event)
        return _build_result(job.model, tuned_graph, run)


def score(
    model: Model,
    data: Any,
    settings: TuneSettings = TuneSettings(),  # noqa: B008  # frozen
    *,
    teacher: Model | None = None,
    task_loss: TaskLoss | None = None,
    validation: Any = None,
    metric: Callable[[], Any] | None = None,
) -> float:
    """Return the score that `tune` gives the start for the same arguments."""
    job = _TuneJob.read(model, data, settings, teacher, task_loss, validation, metric)
    with _TorchState(job.settings):
        run, validator, _ = job.open(None)
        # one process validates, and the others receive its score
        own = validator.score(run.module)[0] if run.world.leads else None
        return float(run.world.from_leader(own))


@dataclass(frozen=True)
class _TuneJob:
    """Checked inputs of a run.

    Attributes
    ----------
    model : Model
        Model to tune, with all weights as initializers.
    settings : TuneSettings
        Hyperparameters, with the device of this process.
    lr : float
        Peak learning rate.
    teacher : Model or None
        Original model.
    weights : mapping of str to float
        Weight of each loss term.
    task : function or None
        Caller's loss.
    metric : function or None
        Factory of the validation metric.
    training, held_out : Samples
        Samples to tune and to validate with.
    """

    model: Model
    settings: TuneSettings
    lr: float
    teacher: Model | None
    weights: Mapping[str, float]
    task: TaskLoss | None
    metric: Callable[[], Any] | None
    training: Samples
    held_out: Samples

    @staticmethod
    def read(
        model: Model,
        data: Any,
        settings: TuneSettings,
        teacher: Model | None,
        task: TaskLoss | None,
        validation: Any,
        metric: Callable[[], Any] | None,
    ) -> _TuneJob:
        """Check the arguments and read the data."""
        model = lift_weights(model)
        teacher = lift_weights(teacher) if teacher is not None else None
        weights = parse(settings.loss)
        _check_loss(weights, teacher, task)
        settings = replace(settings, device=own_device(settings.device))
        lr = settings.peak_lr(batchnorm.is_normalized(model))
        training = gather(data)
        if validation is not None:
            held_out = gather(validation)
        else:
            training, held_out = training.split(settings.validation, settings.seed)
        return _TuneJob(model, settings, lr, teacher, weights, task, metric, training, held_out)

    def open(self, hook: Hook | None) -> tuple[TrainingRun, Validator, Model]:
        """Return the run, its validator, and the graph that is tuned."""
        world = join_world(self.settings.device)
        settings = _fit_batch_size(self.model, self.settings, self.training)
        graph = self.model
        if settings.batchnorm == "insert":
            graph = _insert_normalization(self.model, settings, self.training)
        run = self._prepare(graph, settings, hook, world)
        validator = Validator(
            self.held_out,
            settings,
            run.heads,
            self.metric,
            lambda inputs, labels: loss_and_outputs(run, inputs, labels),
        )
        return run, validator, graph

    def _prepare(
        self, graph: Model, settings: TuneSettings, hook: Hook | None, world: World
    ) -> TrainingRun:
        """Build modules and optimizer, and find what the loss reads."""
        module = to_module(graph).to(settings.device)
        teacher = None
        if self.teacher is not None and needs_teacher(self.weights):
            teacher = to_module(self.teacher).to(settings.device)
        # repeats samples if there are fewer than the graph declares
        rows = np.arange(max(1, module.declared_batch)) % len(self.training)
        example = as_feeds(self.training.take(rows).inputs, module)
        features = list(settings.features) if "feature" in self.weights else []
        if "feature" in self.weights and teacher is not None and not features:
            features = common_features(module, teacher, example)
        # shapes that the graph does not declare are those of a run
        with torch.no_grad():
            ranks = {n: v.ndim for n, v in module(example).items()}
        optimizer = _build_optimizer(module, settings, self.lr)
        if hook is not None:
            hook.start(module)
        return TrainingRun(
            settings,
            self.lr,
            module,
            teacher,
            heads(graph, settings.class_axis, ranks),
            self.weights,
            features,
            self.task,
            world,
            optimizer,
            hook,
        )

    def key(self, run: TrainingRun) -> str:
        """Return a digest of everything that a checkpoint must agree on."""
        settings = {n: v for n, v in asdict(run.settings).items() if n not in _FREE_SETTINGS}
        parts = [
            digest(self.model),
            digest(self.teacher) if self.teacher is not None else "",
            self.training.fingerprint(),
            self.held_out.fingerprint(),
            settings,
            run.hook.signature() if run.hook is not None else "",
            # the content of a function cannot be hashed
            getattr(self.task, "__qualname__", "") if self.task is not None else "",
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_loss(
    weights: Mapping[str, float], teacher: Model | None, task_loss: TaskLoss | None
) -> None:
    """Raise UsageError if the loss needs a teacher or a function that is missing."""
    if needs_teacher(weights) and teacher is None:
        raise UsageError(
            "tune-teacher",
            f"loss {'+'.join(weights)} compares with the unpruned model; pass it as teacher, "
            "or use ce with labels",
        )
    if "task" in weights and task_loss is None:
        raise UsageError(
            "tune-task",
            "loss task is a function of the caller; pass it as task_loss (module:function)",
        )


class _TorchState:
    """Context that sets torch's threads and determinism and restores them afterwards."""

    def __init__(self, settings: TuneSettings) -> None:
        self.settings = settings
        if settings.device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError(
                "tune-device",
                f"device {settings.device!r} is not available: torch finds no GPU; use cpu",
            )

    def __enter__(self) -> None:
        # these are global settings of torch
        self.before = (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.set_num_threads(self.settings.threads)
        # some operations have no deterministic implementation
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *problem: object) -> None:
        threads, deterministic, warn_only = self.before
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _fit_batch_size(model: Model, settings: TuneSettings, samples: Samples) -> TuneSettings:
    """Return settings with a batch size that the graph computes correctly.

    A graph that declares a batch size may mix the samples of a larger batch. If two declared
    batches at once give other values than one at a time, the declared size is used.
    """
    module = to_module(model)
    declared = module.declared_batch
    if not declared or declared == settings.batch_size or len(samples) < 2 * declared:
        return settings
    both = as_feeds(samples.take(np.arange(2 * declared)).inputs, module)
    try:
        with torch.no_grad():
            together = module(both)
            first = module({n: v[:declared] for n, v in both.items()})
            second = module({n: v[declared:] for n, v in both.items()})
        errors = []
        for name, value in together.items():
            if value.is_floating_point():
                separate = torch.cat([first[name], second[name]])
                scale = value.abs().max().clamp_min(1e-12)
                errors.append(float((value - separate).abs().max() / scale))
        fits = max(errors) < BATCH_TOLERANCE
    except (OnnxpruneError, RuntimeError):
        fits = False
    return settings if fits else replace(settings, batch_size=declared)


def _insert_normalization(model: Model, settings: TuneSettings, samples: Samples) -> Model:
    """Return the graph with BatchNormalization inserted, set on up to 256 samples."""
    module, convolutions = to_module(model), batchnorm.find_sites(model)
    if not convolutions:
        raise UsageError(
            "tune-batchnorm",
            "batchnorm insert: every convolution of the graph has a normalization; use keep",
        )
    # mean and variance are stable long before all samples are read
    few = samples.take(np.arange(min(len(samples), CALIBRATION_SAMPLES)))
    size = settings.batch_size
    batches = []
    for begin in range(0, len(few), size):
        rows = np.arange(begin, min(begin + size, len(few)))
        batches.append(as_feeds(few.take(rows).inputs, module))
    return batchnorm.insert(model, batchnorm.measure_moments(module, convolutions, batches))


def _build_optimizer(
    module: OnnxModule, settings: TuneSettings, lr: float
) -> torch.optim.Optimizer:
    """Return the optimizer, with one parameter group per initializer."""
    groups = [
        {"params": [p], "lr_scale": settings.lr_scale.get(name, 1.0)}
        for name, p in module.named().items()
    ]
    if not groups:
        raise UsageError("tune-nothing", "the graph has no float weights to tune")
    decay = settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=decay)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=decay)


def _build_result(model: Model, graph: Model, run: TrainingRun) -> TuneResult:
    """Return the best weights in the given graph; the last ones if a hook accepted none."""
    state = run.state
    start = state.history[0]["score"]
    best = state.best_score[0] if state.best else state.history[-1]["score"]
    # the start is the given model itself
    if state.best and state.best_epoch == 0 and run.hook is None:
        return TuneResult(model, state.history, best, start, 0)
    load_values(run.module, state.best or effective_values(run.module))
    # the values hold the masks already
    run.module.transform, run.module.gates = None, {}
    tuned = write_back(graph, run.module)
    if graph is not model:
        # the result has the given graph: inserted normalizations are folded again
        tuned = batchnorm.fold(tuned, model)
    return TuneResult(tuned, state.history, best, start, state.best_epoch)
