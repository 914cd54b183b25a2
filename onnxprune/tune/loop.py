"""Training loop: steps, validation, and resuming from a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxprune.errors import OnnxpruneError
from onnxprune.events import Event, Listener
from onnxprune.tune.bridge import OnnxModule, as_feeds
from onnxprune.tune.call import Tensor, torch
from onnxprune.tune.distributed import World
from onnxprune.tune.losses import LOSSES, Head, LossInputs
from onnxprune.tune.samples import Samples, augment
from onnxprune.tune.settings import TuneSettings
from onnxprune.tune.state import (
    State,
    load_values,
    read_checkpoint,
    snapshot,
    update_average,
    write_checkpoint,
)
from onnxprune.tune.validate import Validator

TaskLoss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


class Hook(Protocol):
    """Extension that changes the forward pass, such as masks; checkpoints hold its state."""

    def start(self, module: OnnxModule) -> None:
        """Install itself before the first step; sets `module.transform` or `module.gates`."""

    def before_step(self, module: OnnxModule, step: int) -> None:
        """Prepare a step; steps count from 0.

        Random draws must depend on the step and the hook's own seed only.
        """

    def observe(
        self,
        loss: Tensor,
        tensors: Mapping[str, Tensor],
        heads: Sequence[Head],
        samples: int,
        step: int,
    ) -> None:
        """Read the mean loss, outputs and logits of a batch before the backward pass."""

    def done(self) -> float | None:
        """Return the completed share of the hook's work; 1 ends the run.

        None leaves the length of the run to the settings.
        """

    def accepts(self, step: int) -> bool:
        """Return True if the weights after this many steps may become the result."""

    def signature(self) -> str:
        """Return a text that identifies the hook's work, for checkpoints."""

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values."""

    def restore(self, module: OnnxModule, state: Mapping[str, Any]) -> None:
        """Install a state that `state` returned."""


@dataclass
class TrainingRun:
    """Mutable parts of one run.

    Attributes
    ----------
    settings : TuneSettings
        Hyperparameters.
    lr : float
        Peak learning rate.
    module : OnnxModule
        Network that is tuned.
    teacher : OnnxModule or None
        Original network, for losses that compare with it.
    heads : list of Head
        Outputs as the losses read them.
    weights : mapping of str to float
        Weight of each loss term.
    features : list of str
        Inner tensors of the loss "feature".
    task : function or None
        Caller's loss, for the term "task".
    world : World
        Processes of this run.
    optimizer : torch.optim.Optimizer
        One parameter group per initializer.
    hook : Hook or None
        Extension of the forward pass.
    state : State
        Progress, averages and best weights.
    """

    settings: TuneSettings
    lr: float
    module: OnnxModule
    teacher: OnnxModule | None
    heads: list[Head]
    weights: Mapping[str, float]
    features: list[str]
    task: TaskLoss | None
    world: World
    optimizer: torch.optim.Optimizer
    hook: Hook | None
    state: State = field(default_factory=State)


def resume(run: TrainingRun, path: Path | None, key: str) -> bool:
    """Restore a checkpoint; return False if there is none."""
    # the leading process reads the file for all
    own = read_checkpoint(path, key) if path is not None and run.world.leads else None
    checkpoint = run.world.from_leader(own)
    if checkpoint is None:
        return False
    device, state = run.settings.device, checkpoint["state"]
    for name in ("averaged", "best"):
        state[name] = {n: value.to(device) for n, value in state[name].items()}
    state["best_score"] = tuple(state["best_score"])
    run.state = State(**state)
    # the averaged weights may be the best, but training continues from the present ones
    load_values(run.module, checkpoint["values"])
    run.optimizer.load_state_dict(checkpoint["optimizer"])
    if run.hook is not None:
        run.hook.restore(run.module, checkpoint["extra"])
    return True


def validate_start(run: TrainingRun, validator: Validator, on_event: Listener) -> None:
    """Score the initial weights, which are the first candidate."""
    if run.settings.ema:
        run.state.averaged = snapshot(run.module)
    _validate(run, validator, 0, math.nan, 0.0, on_event)


def train(
    run: TrainingRun,
    samples: Samples,
    validator: Validator,
    path: Path | None,
    key: str,
    on_event: Listener,
) -> None:
    """Run the remaining steps, validate after each epoch, write checkpoints to `path`."""
    settings, state = run.settings, run.state
    # the last batch of an epoch may be smaller
    per_epoch = -(-len(samples) // settings.batch_size)
    total = settings.steps or settings.epochs * per_epoch
    _report_begin(run, total, len(samples), on_event)
    began = written = time.monotonic()
    first = _measure_progress(run, total)
    stop = first >= 1
    while state.step < total and not stop:
        loss = _step(run, samples, state.step, per_epoch, total)
        state.running_loss += loss
        state.step += 1
        now = time.monotonic()
        share = _measure_progress(run, total)
        # speed of this process only: a resumed run starts at share `first`
        left_s = (now - began) / (share - first) * (1 - share) if share > first else None
        on_event(Event("tune", "progress", now - began, share, f"loss {loss:.4g}", left_s))
        epoch_ends = state.step % per_epoch == 0 or state.step == total
        stop = share >= 1 or _is_out_of_time(run, now - began)
        if epoch_ends or stop:
            mean = state.running_loss / ((state.step - 1) % per_epoch + 1)
            _validate(run, validator, -(-state.step // per_epoch), mean, now - began, on_event)
            # a run that stops inside an epoch resumes with its running loss
            state.running_loss = 0.0 if epoch_ends else state.running_loss
        # also inside long epochs, so that a killed run loses little
        due = epoch_ends or stop or now - written > settings.checkpoint_s
        if path is not None and run.world.leads and due:
            extra = run.hook.state() if run.hook is not None else {}
            write_checkpoint(path, key, state, run.module, run.optimizer, extra)
            written = now
    detail = f"best score {state.best_score[0]:.4f} in epoch {state.best_epoch}"
    on_event(Event("tune", "end", time.monotonic() - began, detail=detail))
    # no process may end before the leading one has written
    run.world.wait()


def _report_begin(run: TrainingRun, total: int, samples: int, on_event: Listener) -> None:
    """Report the size of the run."""
    done = f" ({run.state.step} done)" if run.state.step else ""
    batch = run.settings.batch_size
    detail = f"{total} steps{done}, batch size {batch}, {samples} samples, lr {run.lr:g}"
    on_event(Event("tune", "begin", detail=detail))


def _measure_progress(run: TrainingRun, total: int) -> float:
    """Return the completed share of the run, from 0 to 1."""
    share = run.hook.done() if run.hook is not None else None
    return run.state.step / total if share is None else share


def _is_out_of_time(run: TrainingRun, seconds: float) -> bool:
    """Return True if the time limit is reached; the leading process decides for all."""
    limit = run.settings.limit_s
    return bool(limit) and bool(run.world.from_leader(seconds > limit))


def _step(run: TrainingRun, samples: Samples, step: int, per_epoch: int, total: int) -> float:
    """Run one optimizer step and return its loss.

    The choice of samples and their augmentation depend on the seed and the step only, so that a
    resumed run repeats them.
    """
    settings, module, size = run.settings, run.module, run.settings.batch_size
    epoch, position = divmod(step, per_epoch)
    # drawn anew per step from the seed: nothing random needs to be stored in a checkpoint
    order = np.random.default_rng([settings.seed, epoch]).permutation(len(samples))
    rows = order[position * size : (position + 1) * size]
    batch = samples.take(run.world.share(rows))
    rng = np.random.default_rng([settings.seed, step, run.world.rank, 1])
    inputs = augment(batch.inputs, settings.augment, rng)
    if run.hook is not None:
        run.hook.before_step(module, step)
    factor = _compute_lr_factor(settings, step, total)
    for group in run.optimizer.param_groups:
        group["lr"] = run.lr * group["lr_scale"] * factor
    # training mode updates running statistics
    module.train(settings.batchnorm != "frozen")
    run.optimizer.zero_grad()
    # the last batch may hold fewer samples than there are processes
    value = _backpropagate(run, inputs, batch, step) if len(batch) else 0.0
    # weight of a mean over the own share: unequal shares count by their samples
    _average_gradients(run, len(batch) * run.world.size / len(rows))
    if not math.isfinite(value):
        raise OnnxpruneError(
            "tune-diverged",
            f"the loss is {value} at step {step + 1} of {total}; lower lr (now {run.lr:g})",
        )
    if settings.clip_norm:
        torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
    run.optimizer.step()
    module.eval()
    if settings.ema:
        update_average(run.state.averaged, module, settings.ema, step)
    return value


def _backpropagate(
    run: TrainingRun, inputs: Mapping[str, np.ndarray], batch: Samples, step: int
) -> float:
    """Run the forward and backward pass of a batch and return its loss."""
    settings = run.settings
    mixed = settings.precision == "bfloat16"
    device_type = settings.device.split(":")[0]
    with torch.autocast(device_type, torch.bfloat16) if mixed else nullcontext():
        loss, tensors = loss_and_outputs(run, inputs, batch.labels)
    if run.hook is not None:
        run.hook.observe(loss, tensors, run.heads, len(batch), step)
    loss.backward()
    return float(loss.detach())


def _average_gradients(run: TrainingRun, weight: float) -> None:
    """Average gradients and running statistics over the processes.

    A parameter that the loss does not reach gets a gradient of zero on every process: all of them
    must take part in the exchange.
    """
    if run.world.size == 1:
        return
    for parameter in run.module.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    run.world.average((p.grad for p in run.module.parameters() if p.grad is not None), weight)
    run.world.average(run.module.buffers())


def _compute_lr_factor(settings: TuneSettings, step: int, total: int) -> float:
    """Return the share of the peak learning rate: linear warm-up, then half a cosine to zero."""
    warm = max(1, round(settings.warmup * total))
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def loss_and_outputs(
    run: TrainingRun, inputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the loss terms on one batch, and the outputs and logits."""
    feeds = as_feeds(inputs, run.module)
    tensors = [h.tensor for h in run.heads] + [h.output for h in run.heads]
    names = list(dict.fromkeys([*tensors, *run.features]))
    student, teacher = _to_float32(run.module(feeds, names)), {}
    if run.teacher is not None:
        with torch.no_grad():
            teacher = _to_float32(run.teacher(feeds, names))
    device = run.settings.device
    loss_inputs = LossInputs(
        student,
        teacher,
        {n: torch.from_numpy(np.asarray(v)).to(device) for n, v in labels.items()},
        run.heads,
        run.features,
        run.settings.temperature,
        run.settings.class_offset,
    )
    terms = [
        weight * _evaluate_term(run, name, loss_inputs).float()
        for name, weight in run.weights.items()
    ]
    return torch.stack(terms).sum(), student


def _evaluate_term(run: TrainingRun, name: str, inputs: LossInputs) -> Tensor:
    """Return one term of the loss."""
    if name != "task" or run.task is None:
        return LOSSES[name][0](inputs)
    return run.task({h.output: inputs.student[h.output] for h in run.heads}, inputs.labels)


def _to_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert floats to float32, in which losses are computed whatever the passes used."""
    return {n: v.float() if v.is_floating_point() else v for n, v in tensors.items()}


def _validate(
    run: TrainingRun,
    validator: Validator,
    epoch: int,
    train_loss: float,
    seconds: float,
    on_event: Listener,
) -> None:
    """Score the averaged weights (or the weights) and keep them if they are the best.

    The best has the least loss of those whose score is within a standard error of the highest and
    not below the start's. A few hundred samples do not tell the scores of two epochs apart; their
    losses differ clearly.
    """
    state, module = run.state, run.module
    current = snapshot(module)
    # validation scores what would be returned: the averaged weights
    load_values(module, state.averaged or current)
    measured = validator.score(module) if run.world.leads else None
    score, loss, standard_error = run.world.from_leader(measured)
    accepted = run.hook is None or run.hook.accepts(state.step)
    state.history.append(
        {
            "epoch": epoch,
            "step": state.step,
            "score": score,
            "validation_loss": loss,
            "loss": train_loss,
            "seconds": seconds,
            "accepted": accepted,
        }
    )
    lowest = _find_lowest_score(run, score, standard_error)
    if accepted and score >= lowest and _is_better(state, score, loss, lowest):
        state.best_score, state.best_epoch = (score, -loss), epoch
        state.best = effective_values(module)
    load_values(module, current)
    best = ", the best so far" if state.best and state.best_epoch == epoch else ""
    detail = f"epoch {epoch}: score {score:.4f}, loss {loss:.4f}{best}"
    on_event(Event("validate", "end", seconds, detail=detail))


def _find_lowest_score(run: TrainingRun, score: float, standard_error: float) -> float:
    """Return the score below which a validation cannot become the best."""
    history = run.state.history
    highest = max((row["score"] for row in history if row["accepted"]), default=score)
    lowest = highest - standard_error
    # a hook's masks may cost quality, so that the start sets no limit
    return max(lowest, history[0]["score"]) if run.hook is None else lowest


def _is_better(state: State, score: float, loss: float, lowest: float) -> bool:
    """Return True if a score of at least `lowest` replaces the best."""
    # a best score below the limit is no longer among the equally good ones
    if not state.best or state.best_score[0] < lowest:
        return True
    return (-loss, score) > state.best_score[::-1]


def effective_values(module: OnnxModule) -> dict[str, Tensor]:
    """Return parameters and statistics as the forward pass uses them, masks applied."""
    values = snapshot(module)
    if module.transform is None:
        return values
    with torch.no_grad():
        for name, weight in module.named().items():
            values[name] = module.transform(name, weight).detach().clone()
    return values
