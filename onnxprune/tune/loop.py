"""The training loop: one step, one validation, and going on where a killed run stopped."""

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
from onnxprune.tune.losses import LOSSES, Head, Sight
from onnxprune.tune.samples import Samples, augmented
from onnxprune.tune.settings import Settings
from onnxprune.tune.state import State, average, put, read_checkpoint, snapshot, write_checkpoint
from onnxprune.tune.validate import Validator

TaskLoss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


class Hook(Protocol):
    """Something that changes how weights enter the forward pass, such as masks. Its state is kept in checkpoints."""

    def start(self, module: OnnxModule) -> None:
        """Before the first step; sets `module.transform`."""

    def before_step(self, module: OnnxModule, step: int) -> None:
        """Before each forward pass; steps count from 0. A draw must depend on the step and the hook's own seed alone."""

    def observe(
        self,
        loss: Tensor,
        tensors: Mapping[str, Tensor],
        heads: Sequence[Head],
        samples: int,
        step: int,
    ) -> None:
        """After each forward pass and before the backward one: the mean loss of so many samples, the outputs and logits."""

    def done(self) -> float | None:
        """Share of its work that is done, 1 ends the run; None: the run lasts as long as the settings say."""

    def accepts(self, step: int) -> bool:
        """Whether the weights after so many steps may be the result."""

    def signature(self) -> str:
        """What it will do, for the checkpoint to agree on."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def restore(self, module: OnnxModule, state: Mapping[str, Any]) -> None:
        """Take over a state."""


@dataclass
class Run:
    """The moving parts of one run. lr: the peak rate."""

    settings: Settings
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


def resume(run: Run, path: Path | None, key: str) -> bool:
    """Take over a checkpoint; False where there is none. The leader reads it for all."""
    found = run.world.from_leader(
        read_checkpoint(path, key) if path is not None and run.world.leads else None
    )
    if found is None:
        return False
    device = run.settings.device
    moved = {
        n: {k: v.to(device) for k, v in found["state"][n].items()} for n in ("averaged", "best")
    }
    run.state = State(
        **{**found["state"], **moved, "best_score": tuple(found["state"]["best_score"])}
    )
    put(run.module, found["values"])
    run.optimizer.load_state_dict(found["optimizer"])
    if run.hook is not None:
        run.hook.restore(run.module, found["extra"])
    return True


def validate_start(run: Run, validator: Validator, on_event: Listener) -> None:
    """Score the start, the first candidate."""
    if run.settings.ema:
        run.state.averaged = snapshot(run.module)
    _validate(run, validator, 0, math.nan, 0.0, on_event)


def train(
    run: Run,
    samples: Samples,
    validator: Validator,
    path: Path | None,
    key: str,
    on_event: Listener,
) -> None:
    """All steps that are left."""
    settings, state = run.settings, run.state
    per_epoch = -(-len(samples) // settings.batch_size)
    total = settings.steps or settings.epochs * per_epoch
    done = f", {state.step} done" if state.step else ""
    on_event(
        Event(
            "tune",
            "begin",
            detail=f"{total} steps{done} of {settings.batch_size} of {len(samples)} samples, lr {run.lr:g}",
        )
    )
    began = written = time.monotonic()
    first = _share(run, total)
    stop = first >= 1
    while state.step < total and not stop:
        loss = _step(run, samples, state.step, per_epoch, total)
        state.running_loss += loss
        state.step += 1
        now = time.monotonic()
        share = _share(run, total)
        left = (now - began) / (share - first) * (1 - share) if share > first else None
        on_event(Event("tune", "progress", now - began, share, f"loss {loss:.4g}", left))
        ends = state.step % per_epoch == 0 or state.step == total
        stop = (
            share >= 1
            or bool(settings.limit_s)
            and run.world.from_leader(now - began > settings.limit_s)
        )
        if ends or stop:
            mean = state.running_loss / ((state.step - 1) % per_epoch + 1)
            _validate(run, validator, -(-state.step // per_epoch), mean, now - began, on_event)
            state.running_loss = 0.0 if ends else state.running_loss
        if (
            path is not None
            and run.world.leads
            and (ends or stop or now - written > settings.checkpoint_s)
        ):
            write_checkpoint(
                path,
                key,
                state,
                run.module,
                run.optimizer,
                run.hook.state() if run.hook is not None else {},
            )
            written = now
    on_event(
        Event(
            "tune",
            "end",
            time.monotonic() - began,
            detail=f"best score {state.best_score[0]:.4f} in epoch {state.best_epoch}",
        )
    )
    run.world.wait()


def _share(run: Run, total: int) -> float:
    """What is done of the run, from 0 to 1."""
    own = run.hook.done() if run.hook is not None else None
    return run.state.step / total if own is None else own


def _step(run: Run, samples: Samples, step: int, per_epoch: int, total: int) -> float:
    """One step of the optimizer; which samples it takes and how they are changed depends on the seed and the step alone."""
    settings, module, size = run.settings, run.module, run.settings.batch_size
    epoch, place = divmod(step, per_epoch)
    rows = np.random.default_rng([settings.seed, epoch]).permutation(len(samples))[
        place * size : (place + 1) * size
    ]
    batch = samples.take(run.world.share(rows))
    inputs = augmented(
        batch.inputs,
        settings.augment,
        np.random.default_rng([settings.seed, step, run.world.rank, 1]),
    )
    if run.hook is not None:
        run.hook.before_step(module, step)
    for group in run.optimizer.param_groups:
        group["lr"] = run.lr * group["lr_scale"] * _factor(settings, step, total)
    module.train(settings.batchnorm != "frozen")
    run.optimizer.zero_grad()
    value = 0.0
    if len(batch):
        with (
            torch.autocast(settings.device.split(":")[0], torch.bfloat16)
            if settings.precision == "bfloat16"
            else nullcontext()
        ):
            loss, tensors = loss_and_outputs(run, inputs, batch.labels)
        if run.hook is not None:
            run.hook.observe(loss, tensors, run.heads, len(batch), step)
        loss.backward()
        value = float(loss.detach())
    _share_gradients(run, len(batch) * run.world.size / len(rows))
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
        average(run.state.averaged, module, settings.ema, step)
    return value


def _share_gradients(run: Run, weight: float) -> None:
    """Average over the processes; a parameter that the loss does not reach has a gradient of zero on all of them."""
    if run.world.size == 1:
        return
    for parameter in run.module.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    run.world.average((p.grad for p in run.module.parameters() if p.grad is not None), weight)
    run.world.average(run.module.buffers())


def _factor(settings: Settings, step: int, total: int) -> float:
    """Share of the peak rate: linear warm-up, then half a cosine to zero."""
    warm = max(1, round(settings.warmup * total))
    if step < warm:
        return (step + 1) / warm
    return (
        1.0
        if settings.schedule == "constant"
        else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
    )


def loss_and_outputs(
    run: Run, inputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> tuple[Tensor, dict[str, Tensor]]:
    """(weighted sum of the terms on one batch, the student's outputs and logits)."""
    feeds = as_feeds(inputs, run.module)
    names = list(
        dict.fromkeys(
            [*(h.tensor for h in run.heads), *(h.output for h in run.heads), *run.features]
        )
    )
    student, guide = _float(run.module(feeds, names)), {}
    if run.teacher is not None:
        with torch.no_grad():
            guide = _float(run.teacher(feeds, names))
    known = {n: torch.from_numpy(np.asarray(v)).to(run.settings.device) for n, v in labels.items()}
    sight = Sight(
        student,
        guide,
        known,
        run.heads,
        run.features,
        run.settings.temperature,
        run.settings.class_offset,
    )
    terms = [weight * _term(run, name, sight).float() for name, weight in run.weights.items()]
    return torch.stack(terms).sum(), student


def _term(run: Run, name: str, sight: Sight) -> Tensor:
    """One term of the loss."""
    if name != "task" or run.task is None:
        return LOSSES[name][0](sight)
    return run.task({h.output: sight.student[h.output] for h in run.heads}, sight.labels)


def _float(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Losses are computed in float32 whatever the passes used."""
    return {n: v.float() if v.is_floating_point() else v for n, v in tensors.items()}


def _validate(
    run: Run,
    validator: Validator,
    epoch: int,
    train_loss: float,
    seconds: float,
    on_event: Listener,
) -> None:
    """Score the averaged weights (the weights where there are none) and keep them if they are the best.

    The best: of those whose score is within a standard error of the highest, and not below the start's, the one with the least loss. A few hundred samples
    do not tell the scores of two epochs apart, and their loss does.
    """
    state, module = run.state, run.module
    current = snapshot(module)
    put(module, state.averaged or current)
    score, loss, doubt = run.world.from_leader(validator.score(module) if run.world.leads else None)
    accepted = run.hook is None or run.hook.accepts(state.step)
    row = {
        "epoch": epoch,
        "step": state.step,
        "score": score,
        "validation_loss": loss,
        "loss": train_loss,
        "seconds": seconds,
        "accepted": accepted,
    }
    state.history.append(row)
    top = max((r["score"] for r in state.history if r["accepted"]), default=score)
    least = max(top - doubt, state.history[0]["score"]) if run.hook is None else top - doubt
    if (
        accepted
        and score >= least
        and (
            not state.best or state.best_score[0] < least or (-loss, score) > state.best_score[::-1]
        )
    ):
        state.best_score, state.best_epoch, state.best = (score, -loss), epoch, effective(module)
    put(module, current)
    best = ", the best so far" if state.best and state.best_epoch == epoch else ""
    on_event(
        Event(
            "validate",
            "end",
            seconds,
            detail=f"epoch {epoch}: score {score:.4f}, loss {loss:.4f}{best}",
        )
    )


def effective(module: OnnxModule) -> dict[str, Tensor]:
    """Values as they enter the forward pass, masks applied."""
    change = module.transform or (lambda name, value: value)
    with torch.no_grad():
        return snapshot(module) | {
            n: change(n, v).detach().clone() for n, v in module.named().items()
        }
